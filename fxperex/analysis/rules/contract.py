"""Products: the batch must not be contracted, and two batches must not be multiplied out."""

from __future__ import annotations

from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, State, join
from fxperex.layers.products import spelled
from fxperex.sites import BatchAxis


def _left(axis: BatchAxis | None, shape: tuple[int, ...], rank: int,
          vector: bool) -> BatchAxis | None:
    """Axis of the left factor in the output: its last dimension is contracted."""
    if axis is None:
        return None
    if axis.dim == len(shape) - 1:
        raise Mixes("it multiplies and adds up over the batch dimension")
    missing = rank + vector - len(shape)
    return axis.moved(axis.dim + missing)


def _right(axis: BatchAxis | None, shape: tuple[int, ...], rank: int,
           vector: bool) -> BatchAxis | None:
    """Axis of the right factor: the last but one is contracted, the last is the output's last."""
    if axis is None:
        return None
    if axis.dim == max(len(shape) - 2, 0):
        raise Mixes("it multiplies and adds up over the batch dimension")
    is_last = vector and axis.dim == len(shape) - 1 and len(shape) > 1
    return axis.moved(axis.dim + rank + vector - len(shape) - is_last)


def product(context: Context, one: str, two: str) -> BatchAxis | None:
    left_shape, right_shape = context.shape(context.arg(one)), context.shape(context.arg(two))
    rank = len(context.out)
    a = _left(context.axis(one), left_shape, rank, vector=len(right_shape) == 1)
    b = _right(context.axis(two), right_shape, rank, vector=len(left_shape) == 1)
    return join([a, b])


SECOND = "other|mat2|vec|tensor"


@rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", reads=f"self {SECOND}")
def matmul(context: Context) -> State:
    return product(context, "self", SECOND)


@rule("aten.addmm", "aten.baddbmm", "aten.addmv", "aten.addbmm", reads="self mat1|batch1|mat "
                                                                       "mat2|batch2|vec")
def addmm(context: Context) -> State:
    if str(context.node.target) == "aten.addbmm.default":
        raise Mixes("it adds up over the leading dimension")
    bias, out = context.axis("self"), product(context, "mat1|batch1|mat", "mat2|batch2|vec")
    if bias is not None:
        bias = bias.moved(bias.dim + len(context.out) - len(context.shape(context.arg("self"))))
    return join([bias, out])


@rule("aten.linear", reads="input weight bias")
def linear(context: Context) -> State:
    if context.axis("weight") is not None or context.axis("bias") is not None:
        raise Mixes("its weight depends on the batch; write it as a batched matmul")
    axis = context.axis("input")
    if axis is not None and axis.dim == len(context.shape(context.arg("input"))) - 1:
        raise Mixes("it multiplies and adds up over the batch dimension")
    return axis


@rule("aten.bilinear", reads="input1 input2 weight bias")
def bilinear(context: Context) -> State:
    x_axis, y_axis = context.axis("input1"), context.axis("input2")
    last_dim = len(context.out) - 1
    if any(a is not None and a.dim == last_dim for a in (x_axis, y_axis)) or any(
            context.axis(name) is not None for name in ("weight", "bias")):
        raise Mixes("it multiplies and adds up over the batch dimension")
    return join([x_axis, y_axis])


@rule("aten.outer", "aten.ger", reads="self vec2")
def outer(context: Context) -> State:
    x_axis, y_axis = context.axis("self"), context.axis("vec2")
    return join([x_axis, y_axis and y_axis.moved(1)])


@rule("aten.einsum", reads="equation tensors")
def einsum(context: Context) -> State:
    operands = list(context.arg("tensors"))
    terms, output = spelled(context.arg("equation"), [len(context.shape(arg)) for arg in operands])
    pairs = ((term, context.axis_of(arg)) for term, arg in zip(terms, operands, strict=True))
    lettered = [(term[axis.dim], axis) for term, axis in pairs if axis is not None]
    letters = sorted({letter for letter, _ in lettered})
    if not letters:
        return None
    if len(letters) > 1:
        raise Mixes(f"the batch has two letters, {letters}: every pair of examples would meet")
    if letters[0] not in output:
        raise Mixes(f"it adds up over {letters[0]!r}, the batch")
    return join(axis.moved(output.index(letters[0])) for _, axis in lettered)
