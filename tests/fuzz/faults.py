"""Faults that the proof once had, each planted alone: the random programs in `orders` must find
them.

A fault is the rule as it was, written with the states of today.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import fx

from fxperex.analysis import batch_axis, state
from fxperex.analysis.rules import RULES, contract, index, layers, view
from fxperex.analysis.rules.pointwise import created, meet
from fxperex.analysis.state import Context, Mixes, State, dim, join
from fxperex.sites import BatchAxis

Plant = Callable[[pytest.MonkeyPatch], None]
Shape = tuple[int, ...]


def _einsum(context: Context) -> State:
    """The flag `fresh` of the last operand with the batch is that of the result."""
    axes = [a for a in map(context.axis_of, context.arg("tensors")) if a is not None]
    result = contract.einsum(context)
    return replace(result, fresh=axes[-1].fresh) if isinstance(result, BatchAxis) else result


def _repeat(context: Context) -> State:
    """A table written down for every example is fresh."""
    return created(context) if context.axis("self") is None else view.repeat(context)


def _index(context: Context) -> State:
    """A place in the batch may be an index of another dimension, and a place looked up is none."""
    base = context.axis("self")
    used = {d: i for d, i in enumerate(context.arg("indices")) if i is not None}
    if base is None or base.dim not in used:
        return index.index(context)
    chosen = meet(context, list(used.values()), max(len(context.shape(i)) for i in used.values()))
    adjacent = max(used) - min(used) + 1 == len(used)
    at = min(used) if adjacent else 0
    return BatchAxis(*index._by_row(base, context.axis_of(used[base.dim]), chosen, at).place)


def _batch_norm(context: Context) -> State:
    """Whether it trains is read by position, and is `eps` in one overload."""
    name, args = str(context.node.target), context.node.args
    if not ("no_training" in name or "no_update" in name) and len(args) > 5 and args[5]:
        raise Mixes("batch normalisation in training mode mixes all examples")
    axis = context.axis("input")
    if axis is not None and axis.dim == 1:
        raise Mixes("the batch is in the channel dimension")
    result = context.for_each_result(None)
    return (axis, *result[1:]) if isinstance(result, tuple) else axis


def _scatter(context: Context) -> State:
    """An index may have fewer rows of the batch than what it writes to."""
    tensors = [t for t in map(context.arg, ("self", "index", "src?")) if isinstance(t, fx.Node)]
    axis = join(map(context.axis_of, tensors))
    if axis is not None and (axis.dim == dim(context.arg("dim"), len(context.out))
                              or any(context.axis_of(t) is None for t in tensors)):
        raise Mixes("it scatters along the batch dimension, or rows of all examples into one")
    return axis


def _rule(function: Callable[[Context], State], *ops: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        for op in ops:
            patch.setitem(RULES, f"aten.{op}", function)
    return plant


def _merges(patch: pytest.MonkeyPatch) -> None:
    """A reshape keeps `fresh` if the dimension keeps its size, whatever is merged into it."""
    mended = view.refactor

    def refactor(axis: BatchAxis, before: Shape, after: Shape, rows: int) -> BatchAxis:
        result = mended(axis, before, after, rows)
        return replace(result, fresh=axis.fresh and after[result.dim] == before[axis.dim])

    patch.setattr(view, "refactor", refactor)


def _losses(patch: pytest.MonkeyPatch) -> None:
    """Fresh scores meet targets in another order, and the losses are in the order of the scores."""
    mended = layers._classified

    def classified(context: Context) -> BatchAxis | None:
        scores, target = context.axis(layers.INPUT), context.axis("target")
        if scores is None or target is None:
            return mended(context)
        if scores.place != target.place and not (scores.fresh or target.fresh):
            raise Mixes("scores and targets have the examples in different places")
        return layers._without(scores, 1)

    patch.setattr(layers, "_classified", classified)


def _sites(patch: pytest.MonkeyPatch) -> None:
    """Rows that a parameter enters stay fresh."""
    for module in (state, batch_axis):
        patch.setattr(module, "settled", lambda axis: axis)


FAULTS: dict[str, Plant] = {
    "einsum": _rule(_einsum, "einsum"),
    "repeat": _rule(_repeat, "repeat"),
    "index": _rule(_index, "index", "_unsafe_index"),
    "losses": _losses,
    "batch norm": _rule(_batch_norm, *(name.removeprefix("aten.") for name, rule in RULES.items()
                                       if rule is layers.batch_norm)),
    "merges": _merges,
    "scatter": _rule(_scatter, "scatter", "scatter_add", "scatter_reduce"),
    "sites": _sites,
}
