"""`EmbeddingBag` over `[B, T]` ids -> a look-up and a reduction over T.

Before: `embedding_bag(table, ids.view(-1), arange(0, B * T, T))`, one flat list of ids and where
each bag starts.
After: `embedding(table, ids.view(-1, T))`, then sum, mean or max over the T ids of a bag, entries
at `padding_idx` left out, as torch does it. Bags of differing lengths (explicit offsets) stay as
they are: they have no fixed place for an example.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
SUM, MEAN, MAX = 0, 1, 2


def take_bags_apart(graph: fx.GraphModule) -> None:
    """Rewrites every fixed-size embedding bag of `graph` in place."""
    for node in list(graph.graph.nodes):
        if str(node.target) == "aten.embedding_bag.padding_idx" and _width(node) is not None:
            with graph.graph.inserting_before(node):
                reduced = _reduced(node, _width(node), graph.graph)
            for item in list(
                    node.users):  # the bags; what else the operator returns is for its own backward
                if item.args[1] == 0:
                    item.replace_all_uses_with(reduced)
                graph.graph.erase_node(item)
            graph.graph.erase_node(node)
    graph.recompile()


def _width(node: fx.Node) -> int | None:
    """Ids per bag, where offsets are `arange(0, n, width)`, every bag is as long and only the bags
    are read.
    """
    offsets, users = node.args[2], list(node.users)
    if str(getattr(offsets, "target",
                   "")) != "aten.arange.start_step" or offsets.args[0] != 0 or node.args[7]:
        return None
    if any(u.target is not operator.getitem or (u.args[1] != 0 and u.users) for u in users):
        return None
    step = offsets.args[2] if len(offsets.args) > 2 else 1  # bags of one
    return step if isinstance(step, int) else None


def _reduced(node: fx.Node, width: int | None, graph: fx.Graph) -> fx.Node:
    table, ids, _, frequencies, mode, sparse, weights, _, padding = node.args
    padding = -1 if padding is None else padding

    def call(target: Any, *args: Any) -> fx.Node:
        result = graph.call_function(target, args)
        result.meta.update({k: v for k, v in node.meta.items() if k != "val"})
        return result

    bags = call(aten.reshape.default, ids, [-1, width])
    rows = call(aten.embedding.default, table, bags, padding, frequencies, sparse)
    if weights is not None:
        rows = call(aten.mul.Tensor, rows, call(aten.reshape.default, weights, [-1, width, 1]))
    unpadded = call(aten.unsqueeze.default, call(aten.ne.Scalar, bags, padding), -1)
    if mode == MAX:
        largest = call(
            aten.amax.default,
            call(aten.masked_fill.Scalar, rows, call(aten.logical_not.default, unpadded),
                 float("-inf")), [1])
        empty = call(aten.logical_not.default, call(aten.any.dim, unpadded, 1))
        return call(aten.masked_fill.Scalar, largest, empty, 0.0)
    total = call(aten.sum.dim_IntList, call(aten.mul.Tensor, rows, unpadded), [1])
    if mode == MEAN:
        total = call(aten.div.Tensor, total,
                     call(aten.clamp.default, call(aten.sum.dim_IntList, unpadded, [1]), 1))
    return total
