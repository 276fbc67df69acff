"""The plan as text, complete: the table with modules, totals, the alternatives, every parameter.

Rows that repeat from block to block are one row. The text is the same in a file, a pipe and a
notebook; `terminal.show` fits it to a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxperex.errors import ConfigError
from fxperex.plan.alternative import Alternative
from fxperex.plan.byte_sizes import size
from fxperex.plan.plan import Plan
from fxperex.plan.table import HEAD, aligned
from fxperex.report.groups import groups, same_but_numbers

SITE = (*HEAD, "module")
ALTERNATIVE = ("strategy", "sites", "sites ms", "step ms", "peak")
PARAMETER = ("parameter", "status", "used by")
LEGEND = ("B examples, G groups, T positions, D inputs and P outputs of a group; held: bytes kept "
          "until the clip factors are known; xN: N sites, ms and held of all")
ALONE = "If one strategy served wherever it is legal:"


def full(plan: Plan, alternatives: Sequence[Alternative], top: int | None = None) -> str:
    """Returns the text of `plan`: its sites with their modules, the alternatives, and whether each
    parameter is trained. With `top`, only the dearest sites and no parameters. Raises ConfigError.
    """
    lines = [*aligned(SITE, site_rows(plan, top)), *remaining(plan, top), *plan.totals(), LEGEND,
             *plan.notes(), "", ALONE,
             *aligned(ALTERNATIVE, [alternative_row(a) for a in alternatives])]
    if top is None:
        lines += ["", "Parameters:", *aligned(PARAMETER, parameter_rows(plan))]
    return "\n".join(lines)


def check_top(top: int | None) -> None:
    """Raises ConfigError unless `top` is None or a number of rows."""
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise ConfigError(f"top must be a number of rows from 1 on; got {top!r}")


def site_rows(plan: Plan, top: int | None = None) -> list[tuple[str, ...]]:
    """Returns the cells of SITE for every site, or group of sites."""
    check_top(top)
    return [group.cells() for group in groups(plan.choices, top)[0]]


def remaining(plan: Plan, top: int | None) -> list[str]:
    """Returns a line on the rows that `top` leaves out, if any."""
    rows = groups(plan.choices, top)[1]
    if not rows:
        return []
    return [f"and {len(rows)} more rows, {1e3 * sum(row.seconds for row in rows):.3f} ms together"]


def alternative_row(alternative: Alternative) -> tuple[str, ...]:
    """Returns the cells of ALTERNATIVE."""
    return (alternative.name, f"{alternative.legal} of {alternative.sites}",
            f"{1e3 * alternative.seconds:.2f}", f"{1e3 * alternative.step_seconds:.2f}",
            size(alternative.peak))


def parameter_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Returns the cells of PARAMETER for every parameter, or group of them: trained, unused or
    frozen, and its uses.
    """
    uses: dict[str, list[str]] = {}
    for choice in plan.choices:
        for name in choice.site.params:
            uses.setdefault(name, []).extend(
                f"{use.node} ({use.kind}: {choice.strategy})" for use in choice.site.each)
    return same_but_numbers([
        *((name, "trained", "; ".join(texts)) for name, texts in uses.items()),
        *((name, "unused", "-") for name in plan.unused),
        *((name, "frozen", "-") for name in plan.frozen)])
