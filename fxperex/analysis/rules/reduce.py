"""Reductions, scans and orderings along dimensions: never along the batch, but for a loss."""

from __future__ import annotations

from typing import Any

from fxperex.analysis.rules.pointwise import meet, pointwise, reduced_tail
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, Reduced, State, dim
from fxperex.sites import BatchAxis


def drop(context: Context, axis: BatchAxis | None, dims: Any, keep: bool, verb: str,
         rank: int | None = None) -> BatchAxis | None:
    """Returns the axis after `dims` are reduced away; refuses if it is among them. None means
    all.
    """
    if axis is None:
        return None
    rank = rank or len(context.shape(context.arg("self")))
    listed = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims,
                                                                                 int) else dims
    gone = {dim(d, rank) for d in listed}
    if axis.dim in gone:
        raise Mixes(f"it {verb} over dimension {axis.dim}, the batch: every example would see all "
                    "others")
    return axis if keep else axis.moved(axis.dim - sum(d < axis.dim for d in gone))


@rule("aten.sum", "aten.mean", "aten.nansum", reads="self dim? keepdim?")
def total(context: Context) -> State:
    state = context.state("self")
    if isinstance(state, Reduced):
        return reduced_tail(context, [state])
    axis = context.axis("self")
    kind = "mean" if "mean" in str(context.node.target) else "sum"
    if axis is not None and context.out == () and "nansum" not in str(context.node.target):
        return Reduced(kind)
    return drop(context, axis, context.arg("dim?"), context.arg("keepdim?", False),
                "sums" if kind == "sum" else "averages")


@rule("aten.amax", "aten.amin", "aten.argmax", "aten.argmin", "aten.any", "aten.all",
      "aten.logsumexp", "aten.prod", "aten.count_nonzero", "aten.median", "aten.mode",
      "aten.kthvalue", "aten.nanmedian", reads="self dim? keepdim?")
def reduce(context: Context) -> State:
    axis = drop(context, context.axis("self"), context.arg("dim?"), context.arg("keepdim?", False),
                "reduces")
    return context.for_each_result(axis)


@rule("aten.max", "aten.min", reads="self dim? keepdim? other?")
def extreme(context: Context) -> State:
    return reduce(context) if context.arg("other?") is None else pointwise(context)


@rule("aten.var", "aten.std", "aten.var_mean", "aten.std_mean", reads="self dim? keepdim?")
def spread(context: Context) -> State:
    axis = drop(context, context.axis("self"), context.arg("dim?"), context.arg("keepdim?", False),
                "takes the spread")
    return context.for_each_result(axis)


@rule("aten.linalg_vector_norm", "aten.norm", "aten.linalg_norm", reads="self dim? keepdim?")
def norm(context: Context) -> State:
    return drop(context, context.axis("self"), context.arg("dim?"), context.arg("keepdim?", False),
                "takes the norm")


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.cumsum",
      "aten.cumprod", "aten.logcumsumexp", "aten.cummax", "aten.cummin", "aten.glu",
      "aten._safe_softmax", reads="self dim")
def along(context: Context) -> State:
    return context.for_each_result(
        drop(context, context.axis("self"), context.arg("dim"), True, "runs"))


@rule("aten.msort", reads="self")
def order_first(context: Context) -> State:
    return drop(context, context.axis("self"), 0, True, "orders")


@rule("aten.sort", "aten.argsort", "aten.topk", reads="self dim")
def order(context: Context) -> State:
    return context.for_each_result(
        drop(context, context.axis("self"), context.arg("dim"), True, "orders"))


@rule("aten.cosine_similarity", reads="x1 x2 dim")
def cosine(context: Context) -> State:
    rank = len(context.out) + 1
    if len(context.shape(context.arg("x1"))) != rank:
        raise Mixes("its first input has fewer dimensions than the second; exchange them")
    axis = meet(context, [context.arg("x1"), context.arg("x2")], rank)
    return drop(context, axis, context.arg("dim"), False, "takes the product", rank)


@rule("aten.diff", reads="self dim prepend append")
def diff(context: Context) -> State:
    axis = meet(context, [context.arg(name) for name in ("self", "prepend", "append")],
                len(context.out))
    return drop(context, axis, context.arg("dim"), True, "takes differences")
