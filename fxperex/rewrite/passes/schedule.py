"""Forward, backward, all norms -> forward, backward with each norm as soon as its output gradient
exists.

Tracing puts every site's norm behind the whole backward, so that all activations and output
gradients live there at once; moved up, those that a norm was the last to read die early. A site's
nodes are moved where the peak of the graph's liveness does not grow. Precondition: `meta["val"]` on
every node. Nodes that draw random numbers, or that touch memory
which any node writes in place, keep their place: for them order is more than the edges of the
graph.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import fx

from fxperex.graph.effects import random, touches, writes, written
from fxperex.graph.provenance import Role, made_for
from fxperex.memory.liveness import Listing, Peak, listing, peak, raised
from fxperex.rewrite.passes.contract import NO_ORDERS, Orders

ROLES = {Role.NORM, Role.GRAD}
ALIASES = {torch.ops.aten.alias.default,
           torch.ops.aten.detach.default}  # traced where a site's values are read: behind it all


@dataclass(frozen=True)
class Schedule:
    """Peak bytes `before` and `after`, and the sites whose nodes were `moved`."""

    before: float
    after: float
    moved: tuple[str, ...]


def schedule(graph: fx.GraphModule, first: Collection[str] = ()) -> Schedule:
    """Returns what was done to `graph`, in place; `after` is never above `before`. The sites of
    `first` are tried as one.
    """
    nodes = list(graph.graph.nodes)
    program, _ = listing(graph.graph)
    sites = _movable(nodes)

    site_of = {n.name: mark.site for n in nodes if (mark := made_for(n))}

    def trial(some: list[str]) -> tuple[float, str]:
        highest = _peak(program,
                        _order(nodes, {n
                                       for s in some
                                       for n in sites[s]}) if some else nodes)
        return highest.bytes, site_of.get(highest.instruction, "")

    before, _ = trial([])
    chosen, after = raised(list(sites), first, trial)
    if not chosen:
        return Schedule(before, before, ())
    _apply(graph, _order(nodes, {n for s in chosen for n in sites[s]}))
    return Schedule(before, after, tuple(chosen))


def schedule_norms(graph: fx.GraphModule, orders: Orders = NO_ORDERS) -> int:
    """Returns how many sites' norms `schedule` moved in `graph`."""
    return len(schedule(graph, orders.early).moved)


def raise_norms(graph: fx.GraphModule, orders: Orders = NO_ORDERS) -> int:
    """Moves every site's norm up, in place, whatever the peak: a later pass lowers it
    (`recompute`). Returns how many nodes may have moved.
    """
    nodes = list(graph.graph.nodes)
    moved = {n for site in _movable(nodes).values() for n in site}
    _apply(graph, _order(nodes, moved))
    return len(moved)


def _movable(nodes: list[fx.Node]) -> dict[str, list[fx.Node]]:
    """Nodes that may move, by the site that made them."""
    dirty = written(nodes)
    by_site: dict[str, list[fx.Node]] = {}
    for node in nodes:
        mark = made_for(node)
        if mark is None or mark.role not in ROLES or node.op != "call_function":
            continue
        if not random(node) and not writes(node) and not touches(node, dirty):
            by_site.setdefault(mark.site, []).append(node)
    return by_site


def _order(nodes: list[fx.Node], moved: set[fx.Node]) -> list[fx.Node]:
    """`nodes` with those of `moved` behind the last value that their site reads, every second name
    of a value behind the first.

    A site's nodes move as one: what it makes of its inputs alone (patches, normalised values) would
    otherwise stand in the forward and live until the output gradient comes. What it reads of other
    sites is the total of their norms, and what another site of its own node was the first to form.
    """
    place = {n: i for i, n in enumerate(nodes)}
    start = max((place[n] for n in nodes if n.op == "placeholder"), default=0)
    free = moved | {n for n in nodes if n.target in ALIASES}
    reads: dict[str, list[fx.Node]] = {}
    for node in (n for n in nodes if n in moved):
        reads.setdefault(_site(node), []).extend(node.all_input_nodes)
    slot: dict[fx.Node, int] = {}
    starts: dict[str, int] = {}
    for node in nodes:
        begin = start
        if node in moved:
            site = _site(node)
            begin = starts.setdefault(
                site, max([start, *(slot[n] for n in reads[site] if n in slot and n not in moved)]))
        slot[node] = max([begin, *(slot[n]
                                   for n in node.all_input_nodes)]) if node in free else place[node]
    return sorted(nodes, key=lambda n: (slot[n], n in free, place[n]))


def _site(node: fx.Node) -> str:
    mark = made_for(node)
    assert mark is not None
    return mark.site


def _peak(program: Listing, order: list[fx.Node]) -> Peak:
    by_name = {i.name: i for i in program.instructions}
    return peak(
        replace(program, instructions=tuple(by_name[n.name] for n in order if n.name in by_name)))


def _apply(graph: fx.GraphModule, order: list[fx.Node]) -> None:
    cursor = order[0]
    for node in order[1:]:
        cursor.append(node)
        cursor = node
    graph.graph.lint()
    graph.recompile()
