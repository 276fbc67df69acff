"""Views and copies that move dimensions: the axis is re-factored, never split."""

from __future__ import annotations

import math

import torch

from fxperex.analysis.rules.pointwise import created, meet, written
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, Reduced, State, dim, join
from fxperex.sites import BatchAxis


@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten",
      "aten._reshape_copy", "aten.view_copy", "aten.ravel", reads="self dtype?")
def view(context: Context) -> State:
    state = context.state("self")
    if isinstance(state, Reduced):
        if context.out != ():
            raise Mixes("a loss that was summed over the batch is reshaped")
        return state
    axis, before = context.axis("self"), context.shape(context.arg("self"))
    if axis is None or 0 in context.out:  # without elements there is nothing to deal out anew
        return created(context)
    if isinstance(context.arg("dtype?"), torch.dtype):
        if axis.dim == len(context.out) - 1 and context.out != before:
            raise Mixes("it reads the bytes of the batch dimension as numbers of another size")
        return BatchAxis(*axis.place, fresh=axis.fresh)  # the bytes of a place are no place
    return refactor(axis, before, context.out, context.rows)


def refactor(axis: BatchAxis, before: tuple[int, ...], after: tuple[int, ...],
             rows: int) -> BatchAxis:
    """Returns where the B-major axis lies after a reshape; refuses one that cuts through it."""
    inner = axis.inner * math.prod(before[axis.dim + 1:])
    right = 1
    for d in reversed(range(len(after))):
        size = after[d]
        if right * size >= inner * rows:
            if inner % right == 0 and right * size % (inner * rows) == 0:
                # Rows that were alike stay alike while each is the same row as before, of the same
                # entries.
                unchanged = size == before[axis.dim] and right == math.prod(before[axis.dim + 1:])
                return BatchAxis(d, right * size // (inner * rows), inner // right, axis.fresh
                                 and unchanged, axis.rows)
            break
        right *= size
    raise Mixes(f"reshaping {list(before)} to {list(after)} cuts through the {rows} examples of "
                f"dimension {axis.dim} and deals their rows out anew")


@rule("aten.permute", "aten.permute_copy", reads="self dims")
def permute(context: Context) -> State:
    axis = context.axis("self")
    order = [dim(d, len(context.out)) for d in context.arg("dims")]
    return axis and axis.moved(order.index(axis.dim))


@rule("aten.numpy_T", reads="self")
def reverse(context: Context) -> State:
    axis = context.axis("self")
    return axis and axis.moved(len(context.out) - 1 - axis.dim)


@rule("aten.transpose", "aten.swapaxes", "aten.t", "aten.adjoint", "aten.mT",
      reads="self dim0|axis0? dim1|axis1?")
def transpose(context: Context) -> State:
    axis, rank = context.axis("self"), len(context.out)
    if axis is None or rank < 2:
        return axis
    dim0, dim1 = dim(context.arg("dim0|axis0?", -2), rank), dim(context.arg("dim1|axis1?", -1),
                                                                rank)
    return axis.moved({dim0: dim1, dim1: dim0}.get(axis.dim, axis.dim))


@rule("aten.movedim", reads="self source destination")
def movedim(context: Context) -> State:
    axis, rank = context.axis("self"), len(context.out)
    if axis is None:
        return None
    def listed(v: int | list[int]) -> list[int]:
        return [dim(d, rank) for d in ([v] if isinstance(v, int) else v)]
    source, target = listed(context.arg("source")), listed(context.arg("destination"))
    order = [d for d in range(rank) if d not in source]
    for place, d in sorted(zip(target, source, strict=True)):
        order.insert(place, d)
    return axis.moved(order.index(axis.dim))


@rule("aten.unsqueeze", reads="self dim")
def unsqueeze(context: Context) -> State:
    axis, along = context.axis("self"), dim(context.arg("dim"), len(context.out))
    return axis and axis.moved(axis.dim + (along <= axis.dim))


@rule("aten.squeeze", reads="self")
def squeeze(context: Context) -> State:
    state = context.state("self")
    if not isinstance(state, BatchAxis):
        return state
    return refactor(state, context.shape(context.arg("self")), context.out, context.rows)


@rule("aten.expand", "aten.broadcast_to", "aten.expand_as", reads="self")
def expand(context: Context) -> State:
    axis = context.axis("self")
    if axis is None:
        return created(context)  # one entry becomes many
    moved = axis.moved(axis.dim + len(context.out) - len(context.shape(context.arg("self"))))
    if any(d != moved.dim for d in context.scaling):
        raise Mixes("it repeats the batch along a second, batch-sized dimension: a table of pairs "
                    "of examples")
    return moved


def _size(context: Context) -> int:
    """Entries of the input in the dimension that is batch-sized in the output; 1 if there is
    none."""
    before, scaling = context.shape(context.arg("self?")), context.scaling
    place = scaling[0] - (len(context.out) - len(before)) if scaling else -1
    return before[place] if place >= 0 else 1


@rule("aten.repeat", reads="self self? repeats")
def repeat(context: Context) -> State:
    axis = context.axis("self")
    if axis is None:
        return written(context, _size(context))
    moved = axis.dim + len(context.out) - len(context.shape(context.arg("self")))
    times = context.arg("repeats")[moved]
    if any(d != moved for d in context.scaling):
        raise Mixes("it repeats the batch along a second, batch-sized dimension: a table of pairs "
                    "of examples")
    return BatchAxis(moved, axis.outer * times, axis.inner, axis.fresh and times == 1)


@rule("aten.repeat_interleave", reads="self? repeats dim?")
def repeat_interleave(context: Context) -> State:
    axis, times, along = context.axis("self?"), context.arg("repeats"), context.arg("dim?")
    if axis is None and isinstance(times, int) and along is not None:
        return written(context, _size(context), times)
    if axis is None or not isinstance(times, int) or along is None:
        raise Mixes("repeats that depend on data, or on the flattened batch, have no fixed place "
                    "for an example")
    inside = dim(along, len(context.out)) == axis.dim
    return BatchAxis(axis.dim, axis.outer, axis.inner * (times if inside else 1), axis.fresh
                     and not inside)


@rule("aten.select", reads="self dim index")
def select(context: Context) -> State:
    axis, rank = context.axis("self"), len(context.shape(context.arg("self")))
    if axis is None:
        return None
    along = dim(context.arg("dim"), rank)
    if along == axis.dim:
        raise Mixes(f"it picks entry {context.arg('index')} of the batch dimension: one example "
                    "for all")
    return axis.moved(axis.dim - (along < axis.dim))


@rule("aten.unbind", reads="self dim")
def unbind(context: Context) -> State:
    axis, value = context.axis("self"), context.node.meta["val"]
    along = dim(context.arg("dim"), len(value[0].shape) + 1)
    if axis is not None and along == axis.dim:
        raise Mixes("it takes the batch apart, example by example")
    return tuple(axis and axis.moved(axis.dim - (along < axis.dim)) for _ in value)


@rule("aten.slice_scatter", "aten.select_scatter", reads="self src dim")
def scatter_view(context: Context) -> State:
    base, source = context.axis("self"), context.axis("src")
    rank = len(context.out)
    is_select = "select" in str(context.node.target)
    along = dim(context.arg("dim"), rank)
    if source is not None and is_select:
        source = source.moved(source.dim + (along <= source.dim))
    joined = join([base, source])
    replaced = not is_select and context.shape(context.arg("src")) == context.out
    if joined is None or along != joined.dim:
        context.refuse_batch_numbers()
    if joined is not None and along == joined.dim and not replaced:
        raise Mixes("it writes into some examples of the batch and not into others")
    return joined


@rule("aten.broadcast_tensors", reads="tensors")
def broadcast(context: Context) -> State:
    tensors, rank = list(context.arg("tensors")), len(context.out)
    axis = meet(context, tensors,
                rank)  # those with a batch must agree; the others are repeated along it
    repeated = axis and BatchAxis(*axis.place, fresh=True)
    return tuple(meet(context, [t], rank) or repeated for t in tensors)


@rule("aten.stack", reads="tensors dim")
def stack(context: Context) -> State:
    tensors, rank = list(context.arg("tensors")), len(context.out)
    along = dim(context.arg("dim"), rank)
    axis = meet(context, tensors, rank - 1)
    return axis and axis.moved(axis.dim + (along <= axis.dim))


@rule("aten.rot90", reads="self dims")
def rotate(context: Context) -> State:
    axis, rank = context.axis("self"), len(context.out)
    if axis is not None and axis.dim in [dim(d, rank) for d in context.arg("dims")]:
        raise Mixes("it turns the batch dimension")
    return axis


@rule("aten.flip", "aten.roll", reads="self dims")
def flip(context: Context) -> State:
    axis, rank, dims = context.axis("self"), len(context.out), context.arg("dims")
    if axis is not None and (not dims or axis.dim in [dim(d, rank) for d in dims]):
        raise Mixes("it moves rows along the batch dimension, so an example gets another's place")
    return axis


@rule("aten.pad", "aten.constant_pad_nd", "aten.reflection_pad1d", "aten.reflection_pad2d",
      "aten.reflection_pad3d", "aten.replication_pad1d", "aten.replication_pad2d",
      "aten.replication_pad3d", reads="self pad|padding")
def pad(context: Context) -> State:
    axis, widths = context.axis("self"), context.arg("pad|padding")
    rank = len(context.out)
    if axis is not None and axis.dim >= rank - len(widths) // 2:
        place = 2 * (rank - 1 - axis.dim)
        if widths[place] or widths[place + 1]:
            raise Mixes("it pads the batch dimension")
    return axis


@rule("aten.unfold", reads="self dimension")
def unfold(context: Context) -> State:
    axis = context.axis("self")
    if axis is not None and dim(context.arg("dimension"), len(context.out) - 1) == axis.dim:
        raise Mixes("it slides a window over the batch dimension")
    return axis
