"""A sum of gradients of different slices -> the slices' gradients side by side.

`q, k, v = x[0], x[1], x[2]`: each of the three has its gradient written into zeros of all of `x`,
and the three are added; now they are stacked, each number written once. Every bit stays, but for
the sign of a zero. Precondition: `meta["val"]` on every node. Inductor fuses the sum by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxperex.rewrite.passes.contract import NO_ORDERS, Orders

aten = torch.ops.aten
SELECTED, ADD = aten.select_backward.default, aten.add.Tensor


def stack_slices(graph: fx.GraphModule, orders: Orders = NO_ORDERS) -> int:
    """Returns how many sums were replaced in `graph`, in place."""
    count = 0
    for node in reversed(list(graph.graph.nodes)):
        slices = _slices(node)
        if slices is None:
            continue
        with graph.graph.inserting_before(node):
            stacked = graph.graph.call_function(aten.stack.default, slices)
        stacked.meta = dict(node.meta)
        node.replace_all_uses_with(stacked)
        count += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return count


def _slices(node: fx.Node) -> tuple[list[Any], Any] | None:
    """(Gradients of all slices in order, their dimension) where `node` is the sum of what they add
    to the whole; else None.
    """
    parts = _summands(node, outermost=True)
    if len(parts) < 2 or any(p.target is not SELECTED for p in parts):
        return None
    _, sizes, dim, _ = parts[0].args
    by_index = {p.args[3]: p.args[0] for p in parts}
    count = sizes[dim]  # type: ignore[index]
    if any(p.args[1:3] != (sizes, dim)
           for p in parts) or len(parts) != count or set(by_index) != set(range(count)):
        return None
    return [by_index[i] for i in range(count)], dim


def _summands(node: fx.Node, *, outermost: bool = False) -> list[fx.Node]:
    """What `node` is the sum of; of partial sums those that nothing else reads are taken apart."""
    if node.target is not ADD or node.kwargs or not (outermost or len(node.users) == 1):
        return [node]
    if not all(
            isinstance(a, fx.Node) and a.meta["val"].shape == node.meta["val"].shape
            for a in node.args):
        return [node]
    return [part for a in node.args for part in _summands(a)]  # type: ignore[arg-type]
