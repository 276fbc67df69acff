"""The captured graph folded by its modules into lanes: few enough to read, in their order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.capture.program import module_path
from fxperex.graph.aten import packet
from fxperex.graph.repeats import Stretch, folded
from fxperex.graph.text import described, numbered, starred
from fxperex.plan.choice import Choice
from fxperex.plan.plan import Plan
from fxperex.plan.table import shape

MOST = 28


@dataclass
class Lane:
    """The nodes of one module, or of all modules below a path.

    ops: how often each operation runs. choices: its sites. reads: the lanes whose values it reads.
    result: the shape of its last value. block: of lanes that stand for several equal blocks, what
    they stand for, as "h.{0..11}"; times: how many.
    """

    name: str
    ops: Counter[str] = field(default_factory=Counter)
    choices: list[Choice] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    result: tuple[int, ...] = ()
    block: str = ""
    times: int = 1

    @property
    def summary(self) -> str:
        """Its operations with their counts, most frequent first."""
        return ", ".join(
            f"{count} {op}" if count > 1 else op for op, count in self.ops.most_common())


def lanes(graph: fx.Graph, plan: Plan, most: int = MOST) -> list[Lane]:
    """Returns the lanes of a captured graph: as many as possible, at most `most`."""
    nodes = [n for n in graph.nodes if n.op == "call_function" and "getitem" not in str(n.target)]
    paths = _paths(nodes)
    deepest = max((p.count(".") + 1 for p in paths.values()), default=1)
    counts = {d: len({_prefix(p, d) for p in paths.values()}) for d in range(deepest, 1, -1)}
    depth = next((d for d, count in counts.items() if count <= most), 1)
    return _folded(nodes, {n: _prefix(p, depth) for n, p in paths.items()}, plan)


def folded_lanes(graph: fx.Graph, plan: Plan, most: int = MOST) -> list[Lane]:
    """Returns the lanes of a captured graph with equal blocks folded into one: as many lanes as
    possible, at most `most`. A folded lane has the sites of all its blocks.
    """
    nodes = [n for n in graph.nodes if n.op == "call_function" and "getitem" not in str(n.target)]
    paths = _paths(nodes)
    deepest = max((p.count(".") + 1 for p in paths.values()), default=1)
    rows: list[Lane] = []
    for depth in range(deepest, 0, -1):
        rows = _merged(_folded(nodes, {n: _prefix(p, depth) for n, p in paths.items()}, plan))
        if len(rows) <= most:
            break
    return rows


def nodes_by_path(graph: fx.Graph) -> dict[str, list[str]]:
    """Returns {module: its nodes of the captured graph as lines}, also for every outer module."""
    nodes = [n for n in graph.nodes if n.op == "call_function" and "getitem" not in str(n.target)]
    texts: dict[str, list[str]] = {}
    for node, path in _paths(nodes).items():
        line = f"{node.name}: {described(node)} = {packet(node)}"
        for depth in range(1, path.count(".") + 2):
            texts.setdefault(_prefix(path, depth), []).append(line)
    return texts


def _merged(rows: list[Lane]) -> list[Lane]:
    """Returns `rows` with equal stretches of them folded, and what they read by the new names."""
    merged: list[Lane] = []
    names: dict[str, str] = {}

    def look(stretches: tuple[Stretch, ...]) -> None:
        for part in stretches:
            for i in range(part.start, part.start + part.length):
                blocks = [rows[i + k * part.length] for k in range(part.count)]
                name = numbered([lane.name for lane in blocks])
                names.update({lane.name: name for lane in blocks})
                choices = [c for lane in blocks for c in lane.choices]
                block = "" if part.count == 1 else _range_of(name)
                merged.append(replace(rows[i], name=name, choices=choices, block=block,
                                      times=part.count))

    look(tuple(replace(part, start=part.start - part.lead, length=part.lead, count=1, lead=0)
               if half else part for part in folded([_token(lane) for lane in rows], 2)
               for half in ((True, False) if part.lead else (False,))))
    for lane in merged:
        lane.reads = list(dict.fromkeys(names[r] for r in lane.reads if names[r] != lane.name))
    return merged


def _range_of(name: str) -> str:
    return name[:name.find("}") + 1] or name


def _token(lane: Lane) -> tuple[object, ...]:
    sites = tuple((starred(c.site.name), c.site.kind, shape(c), c.strategy) for c in lane.choices)
    return starred(lane.name), tuple(sorted(lane.ops.items())), sites, lane.result


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
