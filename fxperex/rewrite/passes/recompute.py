"""Forward values that are kept for the backward -> the same values computed again in front of their
first use there.

A value is computed again once for every part of the step that reads it behind the forward: the
backward with the norms, and the weighted sums; in between it is gone. What the nodes read is kept,
or computed again with them. The plan says which (`planner.recompute`): it looked at the peak over
the whole step and at the seconds this costs. The same operations on the same inputs, so the step's
results are the same bits.

After `raise_norms`, because "first use" is a place: behind its output gradient a norm reads the
copy that the backward made just there; behind the whole backward, all copies would have to live
until then.
Precondition: `meta["val"]` on every node; `meta["part"]` on those of forward and backward. Nodes
that draw random numbers, write in place or touch memory written in place cannot be asked for.

Under Inductor the copies stay apart: it merges equal nodes only where it partitions a joint graph
or freezes weights, and the step graph is neither. It may still fuse a copy into the kernel that
reads it, which needs less memory, or make a cheap one earlier where its own scheduler thinks that
best.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from fxperex.errors import ConfigError, CoverageError
from fxperex.graph.effects import repeatable, storages
from fxperex.graph.provenance import PART, Part, Role, made_for
from fxperex.memory.repetition import BACKWARD, FORWARD, SUMS
from fxperex.rewrite.passes.contract import NO_ORDERS, Orders

Copies = Mapping[tuple[fx.Node, int], fx.Node]  # (forward node, phase) -> its copy there


def recompute(graph: fx.GraphModule, names: Collection[str]) -> int:
    """Returns how many nodes were added to `graph`, in place, so that the forward nodes `names`
    need not be kept.

    Raises ConfigError if `graph` has no such forward nodes, CoverageError if one may not run again.
    """
    nodes = list(graph.graph.nodes)
    gone = {s for n in _find(nodes, names) for s in storages(n)}
    gone -= {s for n in nodes if n.op != "call_function" for s in storages(n)}
    # Views of a value that goes, wherever they are taken, are taken anew of the copy.
    shared = {n for n in nodes if n.op == "call_function" and gone & storages(n)}
    if blocked := sorted(n.name for n in shared - repeatable(nodes)):
        raise CoverageError(f"internal: {', '.join(blocked)} cannot be recomputed: random, or in "
                            "memory written in place")
    phase, place = phases(nodes), {n: i for i, n in enumerate(nodes)}
    copies: dict[tuple[fx.Node, int], fx.Node] = {}
    for node in nodes:
        current = phase(node)
        if node.op == "call_function" and current != FORWARD and node not in shared:
            for source in sorted(_needed(node, shared, current, copies), key=place.__getitem__):
                copies[source, current] = _copy(graph.graph, source, node, current, copies)
            for source in shared.intersection(node.all_input_nodes):
                node.replace_input_with(source, copies[source, current])
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return len(copies)


def recompute_forward(graph: fx.GraphModule, orders: Orders = NO_ORDERS) -> int:
    """Returns how many nodes were added to `graph` for the forward values that it does not keep."""
    return recompute(graph, orders.recomputed)


def phases(nodes: list[fx.Node]) -> Callable[[fx.Node], int]:
    """Returns what tells a node's phase: FORWARD, BACKWARD with the norms, SUMS."""
    memory: set[int] = set()
    forward = set()  # up to its last value; views are taken anywhere
    for i, node in enumerate(nodes):
        if node.meta.get(PART) is Part.FORWARD and not storages(node) <= memory:
            forward = set(nodes[:i + 1])
        memory |= storages(node)

    def phase(node: fx.Node) -> int:
        mark = made_for(node)
        summed = mark is not None and mark.role is Role.WEIGHTED_SUM
        return FORWARD if node in forward else SUMS if summed else BACKWARD

    return phase


def _find(nodes: list[fx.Node], names: Collection[str]) -> list[fx.Node]:
    repeated = [n for n in nodes if n.name in names and n.meta.get(PART) is Part.FORWARD]
    if missing := sorted(set(names) - {n.name for n in repeated}):
        raise ConfigError(f"the plan recomputes {missing[0]!r} (and {len(missing) - 1} others), "
                          "which this step's forward does not have: the plan was made for another "
                          "model or another version of torch; plan again")
    return repeated


def _needed(node: fx.Node, shared: Collection[fx.Node], now: int, copies: Copies) -> set[fx.Node]:
    """Nodes that must be copied in front of `node`."""
    needed: set[fx.Node] = set()
    todo = [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source in shared and source not in needed and (source, now) not in copies:
                needed.add(source)
                todo.append(source)
    return needed


def _copy(graph: fx.Graph, source: fx.Node, before: fx.Node, now: int, copies: Copies) -> fx.Node:
    """Returns a copy of `source` in front of `before`, with values of its own: they tell whose
    memory it shares.
    """
    with graph.inserting_before(before):
        copy = graph.node_copy(source, lambda n: copies.get((n, now), n))
    args, kwargs = (fx.map_arg(a, lambda n: n.meta["val"]) for a in (copy.args, copy.kwargs))
    with detect_fake_mode(pytree.tree_leaves(
        (args, kwargs))) or contextlib.nullcontext(), torch.no_grad():
        value = source.target(*args, **kwargs)  # type: ignore[operator]
    copy.meta |= {PART: Part.RECOMPUTED, "val": value}
    return copy
