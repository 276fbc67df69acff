"""The plan as text: every site with its shapes, strategy, cost and runner-up; totals; alternatives;
every parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxperex.plan.byte_sizes import size
from fxperex.plan.plan import Choice, Plan
from fxperex.planner.alternatives import Alternative

HEAD = ("site", "node", "kind", "B,G,T,D,P", "strategy", "ms", "held", "runner-up")
MODULE = ("module",)
RIGHT = {"ms", "held", "sites ms", "step ms", "peak", "sites", "measured ms", "measured/predicted"}


def table(plan: Plan) -> str:
    """Returns the aligned table of `plan`, ending in totals and notes."""
    return "\n".join([*aligned(HEAD, [row(c) for c in plan.choices]), *totals(plan), *_notes(plan)])


def full(plan: Plan, alternatives: Sequence[Alternative]) -> str:
    """Returns everything known of a plan: the table with module paths, the alternatives, and every
    parameter's coverage.
    """
    rows = [(*row(c), c.site.where.partition(", ")[0]) for c in plan.choices]
    return "\n".join([
        *aligned((*HEAD, *MODULE), rows), *totals(plan), *_notes(plan),
        "", "If one strategy served wherever it is "
            "legal:", *aligned(ALTERNATIVE, [alternative_row(a) for a in alternatives]),
        "", "Parameters:", *aligned(PARAMETER, parameter_rows(plan))])


def aligned(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns lines of a table under `head`; columns of numbers are flush right."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            v.rjust(w) if name in RIGHT else v.ljust(w)
            for name, v, w in zip(head, r, widths, strict=True)).rstrip()
        for r in [head, *rows]
    ]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]


def row(choice: Choice) -> tuple[str, ...]:
    """Returns the cells of HEAD for one site."""
    took = f"{1e3 * choice.seconds:.3f}" + ("*" if choice.strategy in choice.measured else "")
    return (choice.site.name, choice.site.node, choice.site.kind, shape(choice), choice.strategy,
            took, size(choice.cost.held), why_not(choice))


def shape(choice: Choice) -> str:
    d = choice.site.dims
    return ",".join(map(str, (d.B, d.G, d.T, d.D,
                              d.P))) if d else "x".join(map(str, choice.site.shape)) or "scalar"


def why_not(choice: Choice) -> str:
    """Returns the runner-up and what speaks against it: its time, or where it is faster, its
    bytes.
    """
    name = choice.runner_up
    if name is None:
        return "-"
    slower = 1e3 * (choice.times[name] - choice.seconds)
    difference = f"{name} {slower:+.3f} ms"
    more = choice.costs[name].held - choice.cost.held
    if slower > 0:
        return difference
    return f"{difference}, " + (f"holds {size(more)} more" if more > 0 else "not asked for")


def totals(plan: Plan) -> list[str]:
    """Returns the lines on time and memory of the whole plan."""
    naive = plan.whole == "naive"
    how = f"{plan.rows} rows{', one example at a time (naive)' if naive else ' per compiled step'}"
    sites = f"sites {1e3 * plan.seconds:.2f} ms"
    if plan.frame_seconds is None:
        lines = [f"total {sites} predicted beside forward and backward, {size(plan.held)} held; "
                 f"{how}; costs for {plan.device}"]
    else:
        total = 1e3 * (plan.seconds + plan.frame_seconds)
        lines = [f"total {total:.2f} ms predicted: {sites}, forward and backward "
                 f"{1e3 * plan.frame_seconds:.2f} ms; {how}",
                 f"peak memory {size(plan.peak or 0)}, of which strategies hold "
                 f"{size(plan.held)}; costs for {plan.device}"]
    if plan.budget is not None:
        lost = 1e3 * (plan.seconds + (plan.recompute.seconds if plan.recompute else 0.0) -
                      plan.budget.free_seconds)
        lines.append(f"budget {size(plan.budget.memory)} cost {lost:.2f} ms; without it the peak "
                     f"would be {size(plan.budget.free_peak)}")
    if plan.recompute is not None:
        repeated = plan.recompute
        lines.append(f"recomputed: {len(repeated.nodes)} values of the forward, "
                     f"{size(repeated.bytes)} not kept, for {1e3 * repeated.seconds:.2f} ms, "
                     "counted in forward and backward")
    return lines + (["* measured on the "
                     "device"] if any(c.strategy in c.measured for c in plan.choices) else [])


def _notes(plan: Plan) -> list[str]:
    return [f"unused (gradient zero): {name}" for name in plan.unused] + \
        [f"{c.site.name}: {c.note}" for c in plan.choices if c.note]


ALTERNATIVE = ("strategy", "sites", "sites ms", "step ms", "peak")


def alternative_row(found: Alternative) -> tuple[str, ...]:
    return (found.name, f"{found.legal} of "
            f"{found.sites}", f"{1e3 * found.seconds:.2f}", f"{1e3 * found.step_seconds:.2f}",
            size(found.peak))


PARAMETER = ("parameter", "status", "used by")


def parameter_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Returns the coverage report: (parameter, trained | unused | frozen, its sites with kind and
    strategy).
    """
    sites: dict[str, list[str]] = {}
    for c in plan.choices:
        for name in c.site.params:
            sites.setdefault(name, []).extend(f"{use.node} ({use.kind}: "
                                              f"{c.strategy})" for use in c.site.each)
    rows: list[tuple[str, ...]] = [
        (name, "trained", "; ".join(strategies)) for name, strategies in sites.items()
    ]
    return rows + [(n, "unused", "-") for n in plan.unused] + [(n, "frozen", "-")
                                                               for n in plan.frozen]
