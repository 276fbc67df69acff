"""What is cut out of a dimension and joined along one: whole batches only, if it is the batch's."""

from __future__ import annotations

from torch import fx

from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, State, arguments, dim, join
from fxperex.sites import BatchAxis


@rule("aten.slice", "aten.narrow", reads="self dim start step?")
def slice_(context: Context) -> State:
    axis = context.axis("self")
    if axis is None or isinstance(context.arg("start"), fx.Node):
        raise Mixes("it takes as many rows as there are examples, so an example's row depends on "
                    "its place in the batch")
    along, before = dim(context.arg("dim"), len(context.out)), context.shape(context.arg("self"))
    if along != axis.dim:
        context.refuse_batch_numbers()
        return axis
    if context.out == before:
        return axis
    start, twin_start = _start(context.node, along), _start(context.twin, along)
    pieces = _pieces(axis, [start, context.out[along]], context.rows)
    # As many whole batches are left out before it, however many examples there are.
    steady = start * context.twin_rows == twin_start * context.rows
    if context.arg("step?", 1) != 1 or pieces is None or not steady:
        raise Mixes("it keeps some examples of the batch and drops others")
    return pieces[1]


def _start(node: fx.Node, along: int) -> int:
    values = arguments(node)
    start, size = values["start"] or 0, values["self"].meta["val"].shape[along]
    return max(start + size, 0) if start < 0 else min(start, size)


def _pieces(axis: BatchAxis, sizes: list[int], rows: int) -> list[BatchAxis] | None:
    """Where the examples are in pieces of `sizes`, if each holds whole batches; None otherwise.

    What is joined along the batch, `cat([real, fake])`, is so taken apart again.
    """
    inner = 1 if axis.fresh else axis.inner
    if any(size % (inner * rows) for size in sizes):
        return None
    return [BatchAxis(axis.dim, size // (inner * rows), inner, axis.fresh) for size in sizes]


@rule("aten.split", "aten.chunk", "aten.split_with_sizes", "aten.tensor_split", reads="self dim")
def split(context: Context) -> State:
    axis, value = context.axis("self"), context.node.meta["val"]
    along = dim(context.arg("dim"), len(value[0].shape))
    if axis is None or along != axis.dim:
        context.refuse_batch_numbers()
    if axis is None or along != axis.dim or len(value) == 1:
        return tuple(axis for _ in value)
    pieces = _pieces(axis, [v.shape[along] for v in value], context.rows)
    if pieces is None:
        raise Mixes("it splits the batch into groups of examples")
    return tuple(pieces)


@rule("aten.cat", "aten.concat", reads="tensors dim")
def cat(context: Context) -> State:
    tensors, rank = list(context.arg("tensors")), len(context.out)
    tensors = [t for t in tensors if len(context.shape(t)) == rank]
    along, axes = dim(context.arg("dim"), rank), [context.axis_of(t) for t in tensors]
    if len(tensors) > 1 and all(a is not None and a.dim == along for a in axes):
        sizes = [context.shape(t)[along] for t in tensors]
        return _side_by_side([a for a in axes if a is not None], sizes, context.rows)
    axis = join(axes)
    if axis is not None and along == axis.dim and len(tensors) > 1:
        raise Mixes("it joins tensors along the batch dimension, of which some hold no batch")
    return axis


def _side_by_side(axes: list[BatchAxis], sizes: list[int], rows: int) -> BatchAxis:
    """Whole batches one after the other: `outer` grows by each, if all have the same `inner`."""
    inner = next((a.inner for a in axes if not a.fresh), 1)
    if any(a.inner != inner for a in axes if not a.fresh) or any(n % (inner * rows) for n in sizes):
        raise Mixes("it joins tensors along the batch dimension that hold their examples in "
                    "different orders")
    return BatchAxis(axes[0].dim, sum(sizes) // (inner * rows), inner)
