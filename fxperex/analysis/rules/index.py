"""Look-ups: an example may choose its own entries, never another's."""

from __future__ import annotations

from torch import fx

from fxperex.analysis.rules.contract import both
from fxperex.analysis.rules.pointwise import meet
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, State, dim
from fxperex.errors import CoverageError
from fxperex.registry import BatchAxis


@rule("aten.embedding")
def embedding(context: Context) -> State:
    if context.axis(0) is not None:
        raise Mixes("its table depends on the batch")
    if context.arg(3, "scale_grad_by_freq", False):
        raise Mixes("scale_grad_by_freq counts ids over the whole batch; set it to False")
    if context.arg(4, "sparse", False):
        raise CoverageError("an embedding with sparse=True has sparse gradients, which are not supported; set sparse=False")
    return context.axis(1)


@rule("aten.index", "aten._unsafe_index")
def index(context: Context) -> State:
    base, indices = context.axis(0), list(context.arg(1))
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    states = {d: context.states.get(i) for d, i in given if isinstance(i, fx.Node)}
    if any(str(i.meta["val"].dtype) in {"torch.bool", "torch.uint8"} for _, i in given):
        raise Mixes("a boolean mask gives a result whose size depends on data; use torch.where")
    rank = max(len(context.shape(i)) for _, i in given)
    places = [d for d, _ in given]
    adjacent = places == list(range(places[0], places[-1] + 1))
    first = places[0] if adjacent else 0
    chosen = meet(context, [i for _, i in given], rank)
    if base is None:
        if any(isinstance(s, BatchAxis) and s.rows for s in states.values()):
            raise Mixes("it looks up torch.arange(len(x)), an example's place in the batch, in something that is no batch")
        return chosen and chosen.moved(chosen.dim + first)
    if base.dim in states:
        return _by_row(base, states[base.dim], chosen, first)
    if chosen is not None:
        raise Mixes("every example's index would look into every other example; index the batch dimension with "
                    "torch.arange(len(x)) as well, or use torch.gather")
    before = sum(d < base.dim for d in places)
    shift = rank if (adjacent and first < base.dim) or not adjacent else 0
    return base.moved(base.dim - before + shift)


def _by_row(base: BatchAxis, rows: object, chosen: BatchAxis | None, first: int) -> BatchAxis:
    # x[arange(B), i]: row b of the result reads row b of x alone.
    if not isinstance(rows, BatchAxis) or not rows.rows or base.place[1:] != (1, 1) or chosen is None:
        raise Mixes("it indexes the batch dimension with other numbers than torch.arange(len(x))")
    outer, inner = chosen.place[1:]
    return BatchAxis(chosen.dim + first, outer, inner)  # what stands in the row, no longer its number


@rule("aten.gather", "aten.take_along_dim")
def gather(context: Context) -> State:
    swapped = "take_along_dim" in str(context.node.target)  # (self, indices, dim) instead of (self, dim, index)
    base, chosen = context.axis(0), context.axis(1 if swapped else 2)
    if swapped and context.arg(2, "dim") is None:
        raise Mixes("it gathers from the flattened batch; give dim")
    at = dim(context.arg(2 if swapped else 1, "dim"), len(context.out))
    if any(a is not None and a.dim == at for a in (base, chosen)):
        raise Mixes("it gathers along the batch dimension")
    if base is None or chosen is None:
        raise Mixes("it pairs rows of a batch with rows of something that is no batch; expand both to the batch")
    return both(base, chosen)


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(context: Context) -> State:
    at = dim(context.arg(1), len(context.out))
    found = both(both(context.axis(0), context.axis(2)), context.axis(3))
    if found is not None and (found.dim == at or context.axis(2) is None or context.axis(0) is None or (
            isinstance(context.arg(3, "src"), fx.Node) and context.axis(3) is None)):
        raise Mixes("it scatters along the batch dimension, or rows of all examples into one")
    return found


@rule("aten.index_select")
def index_select(context: Context) -> State:
    base, chosen, at = context.axis(0), context.axis(2), dim(context.arg(1), len(context.out))
    if base is None:
        return chosen and chosen.moved(at)
    if chosen is not None or base.dim == at:
        raise Mixes("it selects along the batch dimension, or with every example's index in every other")
    return base


@rule("aten.one_hot")
def one_hot(context: Context) -> State:
    if context.arg(1, "num_classes", -1) == -1:
        raise Mixes("the number of classes is taken from the batch; give num_classes")
    return context.axis(0)


@rule("aten.tril", "aten.triu", "aten.diagonal")
def triangle(context: Context) -> State:
    axis = context.axis(0)
    if axis is not None and ("diagonal" in str(context.node.target) or axis.dim >= len(context.out) - 2):
        raise Mixes("it treats the batch as a side of a matrix")
    return axis


@rule("aten.bucketize", "aten.searchsorted")
def bucketize(context: Context) -> State:
    at = 0 if "bucketize" in str(context.node.target) else 1
    if context.axis(1 - at) is not None:
        raise Mixes("its boundaries depend on the batch")
    return context.axis(at)
