"""Whole parameters as inputs -> this rank's part of each, gathered in front of its first use, and
gathered again in the backward.

Before: `linear(x, w)`. After: `part -> all_gather -> wait -> slice -> linear`. A gather starts one
parameter early, so that it runs beside the work before it. `recompute` takes the gathered values
out of what is kept for the backward: then only as many parameters are whole at a time as are read.
Precondition: `meta["val"]` on every node; the passes of the list have run.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from fxperex.graph.provenance import PART, Part
from fxperex.ranks.shards import Shards
from fxperex.rewrite.passes.recompute import recompute

AHEAD = 1  # parameters that are gathered before the one in use


def gather(graph: fx.GraphModule, parameters: Collection[int], shards: Shards) -> int:
    """Returns how many of the inputs `parameters`, by number, are gathered in `graph`, in place."""
    nodes = list(graph.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    holders = [n for n in nodes if n.op == "placeholder"]
    inputs = [holders[i] for i in parameters]
    readers = {n: min((u for u in n.users if u.op == "call_function"), key=place.__getitem__,
                      default=None) for n in inputs}
    order = sorted((n for n in inputs if readers[n] is not None),
                   key=lambda n: place[readers[n]])  # type: ignore[index]
    names: list[str] = []
    for k, node in enumerate(order):
        names += _gathered(graph.graph, node, readers[node], readers[order[max(k - AHEAD, 0)]],
                           shards)
    for node in inputs:
        if readers[node] is None:
            _cut(node, shards)
    graph.recompile()
    recompute(graph, names)
    return len(order)


def _gathered(graph: fx.Graph, node: fx.Node, reader: Any, early: Any, shards: Shards) -> list[str]:
    """Makes an input a part, and gathers it; returns the names of the nodes that make it whole."""
    users, shape = list(node.users), tuple(node.meta["val"].shape)
    _cut(node, shards)
    ops = torch.ops._c10d_functional
    with graph.inserting_before(early):
        begun = call(graph, ops.all_gather_into_tensor.default, node, shards.size, shards.group)
    with graph.inserting_before(reader):
        filled = call(graph, ops.wait_tensor.default, begun)
        made = [begun, filled]
        if shards.rows(shape) * shards.size != shape[0]:
            made.append(call(graph, torch.ops.aten.slice.Tensor, filled, 0, 0, shape[0]))
    for step in made:
        step.meta[PART] = Part.FORWARD
    for user in users:
        user.replace_input_with(node, made[-1])
    return [begun.name, filled.name]


def _cut(node: fx.Node, shards: Shards) -> None:
    """Gives an input the shape of a filled part."""
    value = node.meta["val"]
    with detect_fake_mode(value):  # type: ignore[union-attr]
        node.meta["val"] = torch.empty((shards.rows(tuple(value.shape)), *value.shape[1:]),
                                       dtype=value.dtype, device=value.device)


def call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    """Returns a new node with its value, computed on the values of its arguments."""
    node = graph.call_function(target, args)
    values = fx.map_arg(args, lambda n: n.meta["val"])
    with detect_fake_mode(pytree.tree_leaves(values)), torch.no_grad():  # type: ignore[union-attr]
        node.meta["val"] = target(*values)
    return node
