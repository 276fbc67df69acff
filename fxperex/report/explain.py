"""The plan as text, complete: the table with modules, totals, the alternatives, every parameter."""

from __future__ import annotations

from collections.abc import Sequence

from fxperex.plan.alternative import Alternative
from fxperex.plan.byte_sizes import size
from fxperex.plan.choice import Choice
from fxperex.plan.plan import Plan
from fxperex.plan.table import HEAD, aligned, row

SITE = (*HEAD, "module")
ALTERNATIVE = ("strategy", "sites", "sites ms", "step ms", "peak")
PARAMETER = ("parameter", "status", "used by")


def full(plan: Plan, alternatives: Sequence[Alternative]) -> str:
    """Returns the text of `plan`: its sites with their modules, the alternatives, and whether each
    parameter is trained.
    """
    return "\n".join([
        *aligned(SITE, site_rows(plan)), *plan.totals(), *plan.notes(),
        "", "If one strategy served wherever it is legal:",
        *aligned(ALTERNATIVE, [alternative_row(a) for a in alternatives]),
        "", "Parameters:", *aligned(PARAMETER, parameter_rows(plan))])


def site_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Returns the cells of SITE for every site."""
    return [(*row(choice), _module(choice)) for choice in plan.choices]


def alternative_row(alternative: Alternative) -> tuple[str, ...]:
    """Returns the cells of ALTERNATIVE."""
    return (alternative.name, f"{alternative.legal} of {alternative.sites}",
            f"{1e3 * alternative.seconds:.2f}", f"{1e3 * alternative.step_seconds:.2f}",
            size(alternative.peak))


def parameter_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Returns the cells of PARAMETER for every parameter: trained, unused or frozen, and its
    uses.
    """
    uses: dict[str, list[str]] = {}
    for choice in plan.choices:
        for name in choice.site.params:
            uses.setdefault(name, []).extend(
                f"{use.node} ({use.kind}: {choice.strategy})" for use in choice.site.each)
    return [*((name, "trained", "; ".join(texts)) for name, texts in uses.items()),
            *((name, "unused", "-") for name in plan.unused),
            *((name, "frozen", "-") for name in plan.frozen)]


def _module(choice: Choice) -> str:
    """Returns the module's path, without the user's source line after it."""
    return choice.site.where.partition(", ")[0]
