"""Reductions, scans and orderings along dimensions: never along the batch, but for a loss."""

from __future__ import annotations

from typing import Any

from fxperex.analysis.rules.pointwise import meet, pointwise, reduced_tail
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, Reduced, State, dim
from fxperex.registry import BatchAxis


def drop(context: Context, axis: BatchAxis | None, dims: Any, keep: bool, verb: str) -> BatchAxis | None:
    """Returns the axis after `dims` are reduced away; refuses if it is among them. None means all."""
    if axis is None:
        return None
    rank = len(context.shape(context.arg(0)))
    listed = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {dim(d, rank) for d in listed}
    if axis.dim in gone:
        raise Mixes(f"it {verb} over dimension {axis.dim}, the batch: every example would see all others")
    return axis if keep else axis.moved(axis.dim - sum(d < axis.dim for d in gone))


@rule("aten.sum", "aten.mean", "aten.nansum")
def total(context: Context) -> State:
    if isinstance(context.state(0), Reduced):
        return reduced_tail(context, [context.state(0)])
    axis = context.axis(0)
    dims = context.arg(1, "dim") if len(context.node.args) > 1 or "dim" in context.node.kwargs else None
    kind = "mean" if "mean" in str(context.node.target) else "sum"
    if axis is not None and context.out == () and "nansum" not in str(context.node.target):
        return Reduced(kind)
    return drop(context, axis, dims, bool(context.arg(2, "keepdim", False)), "sums" if kind == "sum" else "averages")


@rule("aten.amax", "aten.amin", "aten.argmax", "aten.argmin", "aten.any", "aten.all", "aten.logsumexp", "aten.prod",
      "aten.count_nonzero", "aten.max", "aten.min", "aten.median", "aten.mode", "aten.kthvalue", "aten.nanmedian")
def reduce(context: Context) -> State:
    dims = context.arg(1, "dim")
    at = 3 if "kthvalue" in str(context.node.target) else 2
    if "kthvalue" in str(context.node.target):
        dims = context.arg(2, "dim", -1)
    if dims is not None and not isinstance(dims, int | list | tuple):  # max(a, b)
        return pointwise(context)
    axis = drop(context, context.axis(0), dims, bool(context.arg(at, "keepdim", False)), "reduces")
    value = context.node.meta["val"]
    return tuple(axis for _ in value) if isinstance(value, list | tuple) else axis


@rule("aten.var", "aten.std", "aten.var_mean", "aten.std_mean")
def spread(context: Context) -> State:
    dims = context.arg(1, "dim")
    dims = None if isinstance(dims, bool) else dims
    axis = drop(context, context.axis(0), dims, bool(context.node.kwargs.get("keepdim", False)
                                                     or context.arg(3, default=False)), "takes the spread")
    value = context.node.meta["val"]
    return tuple(axis for _ in value) if isinstance(value, list | tuple) else axis


@rule("aten.linalg_vector_norm", "aten.norm", "aten.linalg_norm")
def norm(context: Context) -> State:
    return drop(context, context.axis(0), context.arg(2, "dim"), bool(context.arg(3, "keepdim", False)),
                "takes the norm")


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.cumsum", "aten.cumprod",
      "aten.logcumsumexp", "aten.cummax", "aten.cummin", "aten.glu", "aten._safe_softmax")
def along(context: Context) -> State:
    axis = drop(context, context.axis(0), context.arg(1, "dim", -1), True, "runs")
    value = context.node.meta["val"]
    return tuple(axis for _ in value) if isinstance(value, list | tuple) else axis


@rule("aten.msort")
def order_first(context: Context) -> State:
    return drop(context, context.axis(0), 0, True, "orders")


@rule("aten.sort", "aten.argsort", "aten.topk")
def order(context: Context) -> State:
    target = str(context.node.target)
    at = 2 if "topk" in target or ".stable" in target else 1
    axis = drop(context, context.axis(0), context.arg(at, "dim", -1), True, "orders")
    value = context.node.meta["val"]
    return tuple(axis for _ in value) if isinstance(value, list | tuple) else axis


@rule("aten.cosine_similarity")
def cosine(context: Context) -> State:
    rank = len(context.out) + 1
    if len(context.shape(context.arg(0))) != rank:
        raise Mixes("its first input has fewer dimensions than the second; exchange them")
    axis = meet(context, [context.arg(0), context.arg(1)], rank)
    return drop(context, axis, context.arg(2, "dim", 1), False, "takes the product")


@rule("aten.diff")
def diff(context: Context) -> State:
    ends = [context.arg(0), context.arg(3, "prepend"), context.arg(4, "append")]
    axis = meet(context, ends, len(context.out))
    return drop(context, axis, context.arg(2, "dim", -1), True, "takes differences")
