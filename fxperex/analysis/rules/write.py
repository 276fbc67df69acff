"""Writes into a part of a tensor: an example may write its own rows, at places of its own."""

from __future__ import annotations

from fxperex.analysis.rules.pointwise import meet
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, State, dim, join
from fxperex.sites import BatchAxis

ELSEWHERE = ("it writes rows of the batch into something that is no batch; make it with the "
             "batch's size, torch.zeros(len(x), ...)")


@rule("aten.index_put", reads="self indices values")
def index_put(context: Context) -> State:
    base, values = context.axis("self"), context.arg("values")
    places = [(d, i) for d, i in enumerate(context.arg("indices")) if i is not None]
    if any(str(i.meta["val"].dtype) in {"torch.bool", "torch.uint8"} for _, i in places):
        raise Mixes("it writes at as many places as a mask has, values of which it takes as many; "
                    "use torch.where")
    if base is None:
        raise Mixes(ELSEWHERE)
    rank = max(len(context.shape(i)) for _, i in places)
    dims = [d for d, _ in places]
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    first = dims[0] if adjacent else 0
    chosen = meet(context, [i for _, i in places], rank)
    states = {d: context.axis_of(i) for d, i in places}
    if any(s is not None and s.rows for d, s in states.items() if d != base.dim):
        raise Mixes("it writes at torch.arange(len(x)), an example's place in the batch, in "
                    "something that is no batch")
    if base.dim in states:
        own = _own_rows(base, states[base.dim], chosen, first)
    elif chosen is not None:
        raise Mixes("every example's index would write into every other example; index the batch "
                    "dimension with torch.arange(len(x)) as well, or use scatter")
    else:
        shift = rank if first < base.dim or not adjacent else 0
        own = base.moved(base.dim - sum(d < base.dim for d in dims) + shift)
    full = len(context.out) - len(dims) + rank
    written = context.axis_of(values)
    if base.rows or (written is not None and written.rows):
        raise Mixes("it writes torch.arange(len(x)), an example's place in the batch")
    if written is not None:
        written = written.moved(written.dim + full - len(context.shape(values)))
    joined = join([own, written])
    assert joined is not None
    return joined.moved(base.dim)


def _own_rows(base: BatchAxis, rows: BatchAxis | None, chosen: BatchAxis | None,
              first: int) -> BatchAxis:
    # x[arange(B), i] = y: row b of the index writes into row b of x alone.
    if rows is None or not rows.rows or chosen is None or {base.place[1:], chosen.place[1:]} != {
        (1, 1)}:
        raise Mixes("it writes into the batch dimension at other numbers than "
                    "torch.arange(len(x))")
    return BatchAxis(chosen.dim + first)


@rule("aten.index_add", "aten.index_copy", "aten.index_fill", "aten.index_reduce",
      reads="self dim index source? value?")
def index_write(context: Context) -> State:
    base, source = context.axis("self"), context.axis("source?")
    if context.axis("index") is not None:
        raise Mixes("every example's index would write into every other example; use scatter, with "
                    "an index of the batch's shape")
    if context.axis("value?") is not None:
        raise Mixes("it fills every example with a value of the batch")
    if base is None:
        raise Mixes(ELSEWHERE)
    if base.dim == dim(context.arg("dim"), len(context.out)):
        raise Mixes("it writes along the batch dimension: rows of some examples into others")
    return join([base, source])


@rule("aten.diagonal_scatter", reads="self src dim1 dim2")
def diagonal_scatter(context: Context) -> State:
    base, source, rank = context.axis("self"), context.axis("src"), len(context.out)
    sides = sorted({dim(context.arg("dim1"), rank), dim(context.arg("dim2"), rank)})
    outside = [d for d in range(rank) if d not in sides]
    if source is not None and source.dim >= len(outside):
        raise Mixes("it writes the batch along a diagonal")
    source = source and source.moved(outside[source.dim])
    if base is None:
        raise Mixes(ELSEWHERE)
    if base.dim in sides:
        raise Mixes("it treats the batch as a side of a matrix; give dim1 and dim2 of one "
                    "example's matrix")
    return join([base, source])


@rule("aten.diag_embed", reads="self dim1 dim2")
def diag_embed(context: Context) -> State:
    axis, rank = context.axis("self"), len(context.out)
    sides = {dim(context.arg("dim1"), rank), dim(context.arg("dim2"), rank)}
    if axis is None:
        return None
    if axis.dim == rank - 2:
        raise Mixes("it writes the batch along a diagonal")
    return axis.moved([d for d in range(rank) if d not in sides][axis.dim])
