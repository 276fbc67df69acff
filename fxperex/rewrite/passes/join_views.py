"""Chains of reshapes and permutations -> one reshape, one permutation, or the value itself.

Taking a layer's factors apart into `[B, G, T, D]` and putting them together again leaves four or
five views in a row, most of which move dimensions of one element. A reshape of a reshape is one
reshape; a permutation that moves no dimension longer than one is a reshape; two permutations in a
row are one. Each is a view wherever the chain was. Precondition: `meta["val"]` on every node, no
`view` (`strides.forget_strides`). The rest of a chain that nothing reads any more is removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxperex.graph.effects import touches, written
from fxperex.rewrite.passes.contract import NO_ORDERS, Orders

aten = torch.ops.aten
RESHAPE, PERMUTE = aten.reshape.default, aten.permute.default
RESHAPES = {
    RESHAPE, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims
}


def join_views(graph: fx.GraphModule, orders: Orders = NO_ORDERS) -> int:
    """Returns how many operations were taken out of `graph`, in place."""
    before, dirty = len(graph.graph.nodes), written(graph.graph.nodes)
    for node in list(graph.graph.nodes):
        if touches(node, dirty):  # what a view of it shows depends on when it is taken
            continue
        order = _permutation(node)
        if order is not None:
            _permuted(node, order)
        if node.op == "call_function" and node.target in RESHAPES:
            _reshaped(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return before - len(graph.graph.nodes)


def _permutation(node: fx.Node) -> list[int] | None:
    """The order of dimensions that `node` gives its argument, None where it is no permutation."""
    if node.op != "call_function" or node.target not in {
            PERMUTE, aten.transpose.int, aten.t.default
    }:
        return None
    rank = node.meta["val"].dim()
    if node.target is PERMUTE:
        return [d % rank for d in node.args[1]]  # type: ignore[union-attr, operator, misc]
    order = list(range(rank))
    if rank >= 2:
        i, j = (int(a) % rank for a in node.args[1:3]) if node.target is aten.transpose.int else (
            0, 1)  # type: ignore[call-overload]
        order[i], order[j] = order[j], order[i]
    return order


def _permuted(node: fx.Node, order: list[int]) -> None:
    """Joins `node` with a permutation in front of it; one that moves only single elements becomes a
    reshape.
    """
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    inner = _permutation(source)
    if inner is not None:
        source, order = source.args[0], [inner[d] for d in order]  # type: ignore[assignment]
    if _keeps(order, source.meta["val"].shape):
        _become(node, RESHAPE, source, list(node.meta["val"].shape))
    elif inner is not None:
        _become(node, PERMUTE, source, order)


def _keeps(order: Sequence[int], shape: Sequence[int]) -> bool:
    """True where the dimensions longer than one stay in their order."""
    long = [d for d in order if shape[d] != 1]
    return long == sorted(long)


def _reshaped(node: fx.Node) -> None:
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    while source.op == "call_function" and source.target in RESHAPES:
        source = source.args[0]  # type: ignore[assignment]
    if source is not node.args[0] or node.target is not RESHAPE:
        _become(node, RESHAPE, source, list(node.meta["val"].shape))


def _become(node: fx.Node, target: torch._ops.OpOverload, source: fx.Node,
            argument: list[int]) -> None:
    node.target, node.args, node.kwargs = target, (source, argument), {}
