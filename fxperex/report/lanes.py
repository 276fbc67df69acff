"""The captured graph folded by its modules into lanes: few enough to read, in their order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.capture.program import module_path
from fxperex.graph.aten import packet
from fxperex.plan.choice import Choice
from fxperex.plan.plan import Plan

MOST = 28


@dataclass
class Lane:
    """The nodes of one module, or of all modules below a path.

    ops: how often each operation runs. choices: its sites. reads: the lanes whose values it reads.
    result: the shape of its last value.
    """

    name: str
    ops: Counter[str] = field(default_factory=Counter)
    choices: list[Choice] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    result: tuple[int, ...] = ()

    @property
    def summary(self) -> str:
        """Its operations with their counts, most frequent first."""
        return ", ".join(
            f"{count} {op}" if count > 1 else op for op, count in self.ops.most_common())


def lanes(graph: fx.Graph, plan: Plan) -> list[Lane]:
    """Returns the lanes of a captured graph: as many as possible, at most MOST."""
    nodes = [n for n in graph.nodes if n.op == "call_function" and "getitem" not in str(n.target)]
    paths = _paths(nodes)
    deepest = max((p.count(".") + 1 for p in paths.values()), default=1)
    counts = {d: len({_prefix(p, d) for p in paths.values()}) for d in range(deepest, 1, -1)}
    depth = next((d for d, count in counts.items() if count <= MOST), 1)
    return _folded(nodes, {n: _prefix(p, depth) for n, p in paths.items()}, plan)


def _paths(nodes: list[fx.Node]) -> dict[fx.Node, str]:
    """Returns the module path of every node.

    A node without a module has its first input's path; a scalar, and all after it, is of the loss.
    """
    lanes: dict[fx.Node, str] = {}
    for node in nodes:
        path = module_path(node)
        if not path:
            near = [lanes[n] for n in node.all_input_nodes if n in lanes]
            scalar = all(t.dim() == 0
                         for t in pytree.tree_leaves(node.meta.get("val"))
                         if isinstance(t, torch.Tensor))
            path = near[0] if near else "model"
            if scalar or "loss" in near:
                path = "loss"
        lanes[node] = path
    return lanes


def _prefix(path: str, depth: int) -> str:
    return ".".join(path.split(".")[:depth])


def _folded(nodes: list[fx.Node], where: dict[fx.Node, str], plan: Plan) -> list[Lane]:
    lanes: dict[str, Lane] = {}
    names = {n.name: where[n] for n in nodes}
    for node in nodes:
        lane = lanes.setdefault(where[node], Lane(where[node]))
        lane.ops[packet(node).lstrip("_")] += 1
        for source in node.all_input_nodes:
            neighbour = where.get(source)
            if neighbour is not None and neighbour != lane.name and neighbour not in lane.reads:
                lane.reads.append(neighbour)
        leaves = pytree.tree_leaves(node.meta.get("val"))
        tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        lane.result = tuple(tensors[0].shape) if tensors else lane.result
    for choice in plan.choices:
        lanes[names[choice.site.node]].choices.append(choice)
    return list(lanes.values())
