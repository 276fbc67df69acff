"""Look-ups: an example may choose its own entries, never another's."""

from __future__ import annotations

from torch import fx

from fxperex.analysis.rules.pointwise import meet
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, State, dim, join
from fxperex.errors import CoverageError
from fxperex.sites import BatchAxis


@rule("aten.embedding", reads="weight indices scale_grad_by_freq sparse")
def embedding(context: Context) -> State:
    if context.axis("weight") is not None:
        raise Mixes("its table depends on the batch")
    if context.arg("scale_grad_by_freq"):
        raise Mixes("scale_grad_by_freq counts ids over the whole batch; set it to False")
    if context.arg("sparse"):
        raise CoverageError("an embedding with sparse=True has sparse gradients, which are not "
                            "supported; set sparse=False")
    return context.axis("indices")


@rule("aten.index", "aten._unsafe_index", reads="self indices")
def index(context: Context) -> State:
    base, indices = context.axis("self"), list(context.arg("indices"))
    indexed = [(d, i) for d, i in enumerate(indices) if i is not None]
    states = {d: context.axis_of(i) for d, i in indexed}
    if any(str(i.meta["val"].dtype) in {"torch.bool", "torch.uint8"} for _, i in indexed):
        raise Mixes("a boolean mask gives a result whose size depends on data; use torch.where")
    rank = max(len(context.shape(i)) for _, i in indexed)
    places = [d for d, _ in indexed]
    adjacent = places == list(range(places[0], places[-1] + 1))
    position = places[0] if adjacent else 0
    chosen = meet(context, [i for _, i in indexed], rank)
    if any(s is not None and s.rows for d, s in states.items() if base is None or d != base.dim):
        raise Mixes("it looks up torch.arange(len(x)), an example's place in the batch, in "
                    "something that is no batch")
    if base is None:
        return chosen and chosen.moved(chosen.dim + position)
    if base.dim in states:
        return _by_row(base, states[base.dim], chosen, position)
    if chosen is not None:
        raise Mixes("every example's index would look into every other example; index the batch "
                    "dimension with torch.arange(len(x)) as well, or use torch.gather")
    before = sum(d < base.dim for d in places)
    shift = rank if (adjacent and position < base.dim) or not adjacent else 0
    return base.moved(base.dim - before + shift)


def _by_row(base: BatchAxis, rows: BatchAxis | None, chosen: BatchAxis | None,
            first: int) -> BatchAxis:
    # x[arange(B), i]: row b of the result reads row b of x alone, and is the number b if that is.
    if rows is None or not rows.rows or base.place[1:] != (1, 1) or chosen is None:
        raise Mixes("it indexes the batch dimension with other numbers than torch.arange(len(x))")
    outer, inner = chosen.place[1:]
    return BatchAxis(chosen.dim + first, outer, inner, rows=base.rows)


@rule("aten.gather", "aten.take_along_dim", reads="self dim index|indices")
def gather(context: Context) -> State:
    base, chosen = context.axis("self"), context.axis("index|indices")
    shapes = [context.shape(context.arg(name)) for name in ("self", "index|indices")]
    if context.arg("dim") is None:
        if base is None and len(shapes[1]) <= 1:  # a table, flattened, and one index an example
            return chosen
        raise Mixes("it gathers from the flattened batch; give dim")
    along = dim(context.arg("dim"), len(context.out))
    if base is None and chosen is not None and chosen.dim == along:
        return chosen  # every example reads entries of its own from a table
    if any(a is not None and a.dim == along for a in (base, chosen)):
        raise Mixes("it gathers along the batch dimension")
    spread = "take_along_dim" in str(context.node.target)
    axis, beside = (base, shapes[1]) if chosen is None else (chosen, shapes[0])
    if spread and axis is not None and None in (base, chosen) and beside[axis.dim] == 1:
        return axis  # torch spreads what is one for all
    if base is None or chosen is None:
        raise Mixes("it pairs rows of a batch with rows of something that is no batch; expand "
                    "both to the batch")
    return join([base, chosen])


@rule("aten.take", reads="self index")
def take(context: Context) -> State:
    if context.axis("self") is not None:
        raise Mixes("it takes from the flattened batch; use gather, with dim")
    return context.axis("index")


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce", reads="self dim index src?")
def scatter(context: Context) -> State:
    along = dim(context.arg("dim"), len(context.out))
    tensors = [t for t in map(context.arg, ("self", "index", "src?")) if isinstance(t, fx.Node)]
    joined = join(map(context.axis_of, tensors))
    if joined is None:
        return None
    if joined.dim == along or any(context.axis_of(t) is None for t in tensors):
        raise Mixes("it scatters along the batch dimension, or rows of all examples into one")
    # torch lets an index be shorter, and takes the front
    if len({context.shape(t)[joined.dim] for t in tensors}) > 1:
        raise Mixes("its index has fewer rows of the batch than what it writes to, so only some "
                    "examples are written")
    return joined


@rule("aten.index_select", reads="self dim index")
def index_select(context: Context) -> State:
    base, chosen = context.axis("self"), context.axis("index")
    along = dim(context.arg("dim"), len(context.out))
    if base is None:
        return chosen and chosen.moved(along)
    if chosen is not None or base.dim == along:
        raise Mixes("it selects along the batch dimension, or with every example's index in every "
                    "other")
    return base


@rule("aten.one_hot", reads="self num_classes")
def one_hot(context: Context) -> State:
    if context.arg("num_classes") == -1:
        raise Mixes("the number of classes is taken from the batch; give num_classes")
    return context.axis("self")


@rule("aten.tril", "aten.triu", reads="self")
def triangle(context: Context) -> State:
    axis = context.axis("self")
    if axis is not None and axis.dim >= len(context.out) - 2:
        raise Mixes("it treats the batch as a side of a matrix")
    return axis


@rule("aten.diagonal", reads="self dim1 dim2")
def diagonal(context: Context) -> State:
    axis, rank = context.axis("self"), len(context.shape(context.arg("self")))
    if axis is None:
        return None
    sides = {dim(context.arg("dim1"), rank), dim(context.arg("dim2"), rank)}
    if axis.dim in sides:
        raise Mixes("it treats the batch as a side of a matrix; give dim1 and dim2 of one "
                    "example's matrix")
    return axis.moved(axis.dim - sum(d < axis.dim for d in sides))


@rule("aten.bucketize", "aten.searchsorted", reads="self boundaries|sorted_sequence sorter?")
def bucketize(context: Context) -> State:
    bounds = [context.axis(name) for name in ("boundaries|sorted_sequence", "sorter?")]
    if all(axis is None for axis in bounds):
        rank = len(context.shape(context.arg("boundaries|sorted_sequence")))
        axis = context.axis("self")
        if axis is not None and axis.dim < rank - 1:
            raise Mixes("its boundaries are a table with a row for each place in the batch")
        return axis
    # Own boundaries: all have the same leading dimensions, and search along the last.
    ends = len(context.shape(context.arg("boundaries|sorted_sequence"))) - 1
    joined = join([context.axis("self"), *bounds])
    if context.axis("self") is None or bounds[0] is None or joined is None or joined.dim >= ends:
        raise Mixes("its boundaries depend on the batch, and its input is not each example's own")
    return joined
