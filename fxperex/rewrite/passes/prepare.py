"""A graph as it was traced -> one that other passes may change: no dead code, no fixed strides."""

from __future__ import annotations

from torch import fx

from fxperex.graph.strides import forget_strides
from fxperex.rewrite.passes.contract import NO_ORDERS, Orders


def remove_dead_code(graph: fx.GraphModule, orders: Orders = NO_ORDERS) -> int:
    """Returns how many nodes nothing reads were taken out of `graph`, in place."""
    before = len(graph.graph.nodes)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return before - len(graph.graph.nodes)


def views_to_reshapes(graph: fx.GraphModule, orders: Orders = NO_ORDERS) -> int:
    """Returns how many views became reshapes in `graph`, in place."""
    return forget_strides(graph)
