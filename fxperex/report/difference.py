"""What changed from one plan, or one step graph, to another."""

from __future__ import annotations

from collections import Counter

from torch import fx

from fxperex.graph.aten import packet
from fxperex.plan.byte_sizes import size
from fxperex.plan.plan import Plan
from fxperex.plan.table import aligned, shape
from fxperex.report.groups import same_but_numbers

SITES = ("site", "here", "there", "ms here", "ms there")
OPERATIONS = ("operation", "here", "there")


def difference(plan: Plan, other: Plan, graphs: tuple[fx.Graph, fx.Graph] | None = None) -> str:
    """Returns a text: the sites whose strategy or shape differs, what the plans take, and the
    operations that the step graphs have in different numbers.
    """
    rows = _sites(plan, other)
    lines = [*aligned(SITES, rows), ""] if rows else ["every site has the same strategy"]
    lines += [f"{what}: {ours} here, {theirs} there" for what, ours, theirs in (
        ("rows of a step", str(plan.rows), str(other.rows)),
        ("sites", f"{1e3 * plan.seconds:.3f} ms", f"{1e3 * other.seconds:.3f} ms"),
        ("held by strategies", size(plan.held), size(other.held)),
        ("device", plan.device, other.device)) if ours != theirs]
    if graphs is not None:
        counts = _operations(*graphs)
        lines += ["", *aligned(OPERATIONS, counts)] if counts else [
            "the step graphs have the same operations"]
    return "\n".join(lines)


def _sites(plan: Plan, other: Plan) -> list[tuple[str, ...]]:
    ours = {c.site.name: c for c in plan.choices}
    theirs = {c.site.name: c for c in other.choices}
    rows = []
    for name in dict.fromkeys([*ours, *theirs]):
        pair = ours.get(name), theirs.get(name)
        same_shape = all(pair) and shape(pair[0]) == shape(pair[1])  # type: ignore[arg-type]
        texts = ["-" if c is None else c.strategy if same_shape else f"{c.strategy} {shape(c)}"
                 for c in pair]
        if texts[0] != texts[1]:
            times = ["-" if c is None else f"{1e3 * c.seconds:.3f}" for c in pair]
            rows.append((name, *texts, *times))
    return same_but_numbers(rows)


def _operations(graph: fx.Graph, other: fx.Graph) -> list[tuple[str, ...]]:
    def counted(nodes: fx.Graph) -> Counter[str]:
        return Counter(packet(n) for n in nodes.nodes if n.op == "call_function")

    ours, theirs = counted(graph), counted(other)
    return [(name, str(ours[name]), str(theirs[name]))
            for name in sorted(ours | theirs) if ours[name] != theirs[name]]
