"""Sums of whole parameters -> this rank's part of the sums of all ranks.

Before: `sum`. After: `sum -> pad -> reduce_scatter -> wait`, as soon as the sum is there. A sum is
alive until its wait: at most `WINDOW` are under way. On a mesh of two dimensions the parts are then
added up over the groups that hold copies.
Precondition: `meta["val"]` on every node; after `gather`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import fx

from fxperex.errors import CoverageError
from fxperex.ranks.shards import Shards
from fxperex.rewrite.passes.gather import call

BY_ROW = 3  # outputs before the sums: losses, norms, factors
WINDOW = 2


def scatter(graph: fx.GraphModule, count: int, shards: Shards) -> int:
    """Returns how many sums, of the `count` that `graph` returns, are reduced, in place."""
    output = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    place = {node: i for i, node in enumerate(graph.graph.nodes)}
    flying: deque[tuple[int, fx.Node]] = deque()
    for index in sorted(range(BY_ROW, BY_ROW + count), key=lambda i: place[values[i]]):
        begun = _begun(graph.graph, values[index], shards)
        flying.append((index, begun))
        if len(flying) > WINDOW:
            earlier, waiting = flying.popleft()
            with graph.graph.inserting_after(begun):
                values[earlier] = _ended(graph.graph, waiting, shards)
    with graph.graph.inserting_before(output):
        for index, begun in flying:
            values[index] = _ended(graph.graph, begun, shards)
    output.args = (tuple(values),)
    graph.graph.lint()
    graph.recompile()
    _verify(graph, count)
    return count


def _begun(graph: fx.Graph, total: fx.Node, shards: Shards) -> fx.Node:
    shape = tuple(total.meta["val"].shape)
    filled = shards.rows(shape) * shards.size - shape[0]
    if filled:
        with graph.inserting_after(total):
            total = call(graph, torch.ops.aten.constant_pad_nd.default, total,
                         [0, 0] * (len(shape) - 1) + [0, filled])
    with graph.inserting_after(total):
        return call(graph, torch.ops._c10d_functional.reduce_scatter_tensor.default, total, "sum",
                    shards.size, shards.group)


def _ended(graph: fx.Graph, begun: fx.Node, shards: Shards) -> fx.Node:
    """The part that `begun` ends in, in front of or after the same place as it is made."""
    ops = torch.ops._c10d_functional
    part = call(graph, ops.wait_tensor.default, begun)
    if shards.copies == 1:
        return part
    with graph.inserting_after(part):
        summed = call(graph, ops.all_reduce.default, part, "sum", shards.replicas)
    with graph.inserting_after(summed):
        return call(graph, ops.wait_tensor.default, summed)


def _verify(graph: fx.GraphModule, count: int) -> None:
    """Raises CoverageError unless each sum, and nothing else that is returned, was reduced."""
    output = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    waits = [str(v.target).startswith("_c10d_functional.wait_tensor")
             for v in output.args[0]]  # type: ignore[union-attr]
    expected = [BY_ROW <= i < BY_ROW + count for i in range(len(waits))]
    if waits != expected:
        raise CoverageError("internal: the sums of a sharded step, and they alone, must be those "
                            f"of all ranks; outputs that are: {waits}")
