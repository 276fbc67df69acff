"""Products: the batch must not be contracted, and two batches must not be multiplied out."""

from __future__ import annotations

from torch import fx

from fxperex.analysis.rules.pointwise import agree
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, State
from fxperex.layers.products import spelled
from fxperex.registry import BatchAxis


def both(one: BatchAxis | None, two: BatchAxis | None) -> BatchAxis | None:
    return two if one is None else one if two is None else agree(one, two)


def _left(axis: BatchAxis | None, shape: tuple[int, ...], rank: int, vector: bool) -> BatchAxis | None:
    """Axis of the left factor in the output: its last dimension is contracted."""
    if axis is None:
        return None
    if axis.dim == len(shape) - 1:
        raise Mixes("it multiplies and adds up over the batch dimension")
    missing = rank + vector - len(shape)
    return axis.moved(axis.dim + missing)


def _right(axis: BatchAxis | None, shape: tuple[int, ...], rank: int, vector: bool) -> BatchAxis | None:
    """Axis of the right factor: the last but one is contracted, the last is the output's last."""
    if axis is None:
        return None
    if axis.dim == max(len(shape) - 2, 0):
        raise Mixes("it multiplies and adds up over the batch dimension")
    last = vector and axis.dim == len(shape) - 1 and len(shape) > 1
    return axis.moved(axis.dim + rank + vector - len(shape) - last)


def product(context: Context, one: int, two: int) -> BatchAxis | None:
    left, right = context.shape(context.arg(one)), context.shape(context.arg(two))
    rank = len(context.out)
    a = _left(context.axis(one), left, rank, vector=len(right) == 1)
    b = _right(context.axis(two), right, rank, vector=len(left) == 1)
    return both(a, b)


@rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def matmul(context: Context) -> State:
    return product(context, 0, 1)


@rule("aten.addmm", "aten.baddbmm", "aten.addmv", "aten.addbmm")
def addmm(context: Context) -> State:
    if str(context.node.target) == "aten.addbmm.default":
        raise Mixes("it adds up over the leading dimension")
    bias, out = context.axis(0), product(context, 1, 2)
    if bias is not None:
        bias = bias.moved(bias.dim + len(context.out) - len(context.shape(context.arg(0))))
    return both(bias, out)


@rule("aten.linear")
def linear(context: Context) -> State:
    if context.axis(1) is not None or context.axis(2) is not None:
        raise Mixes("its weight depends on the batch; write it as a batched matmul")
    axis = context.axis(0)
    if axis is not None and axis.dim == len(context.shape(context.arg(0))) - 1:
        raise Mixes("it multiplies and adds up over the batch dimension")
    return axis


@rule("aten.bilinear")
def bilinear(context: Context) -> State:
    one, two = context.axis(0), context.axis(1)
    last = len(context.out) - 1
    if any(a is not None and a.dim == last for a in (one, two)) or context.axis(2) is not None:
        raise Mixes("it multiplies and adds up over the batch dimension")
    return both(one, two)


@rule("aten.outer", "aten.ger")
def outer(context: Context) -> State:
    one, two = context.axis(0), context.axis(1)
    return both(one, two and two.moved(1))


@rule("aten.einsum")
def einsum(context: Context) -> State:
    operands = list(context.arg(1))
    terms, output = spelled(context.arg(0), [len(context.shape(arg)) for arg in operands])
    letters: dict[str, BatchAxis] = {}
    for term, arg in zip(terms, operands, strict=True):
        state = context.states.get(arg) if isinstance(arg, fx.Node) else None
        if isinstance(state, BatchAxis):
            letter = term[state.dim]
            if letter in letters and letters[letter].place[1:] != state.place[1:]:
                raise Mixes("its inputs hold the examples in another order")
            letters[letter] = state
        elif state is not None:
            raise Mixes("an input was already summed over the batch")
    if not letters:
        return None
    if len(letters) > 1:
        raise Mixes(f"the batch has two letters, {sorted(letters)}: every pair of examples would meet")
    letter, axis = next(iter(letters.items()))
    if letter not in output:
        raise Mixes(f"it adds up over {letter!r}, the batch")
    return axis.moved(output.index(letter))
