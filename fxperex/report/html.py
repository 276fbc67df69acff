"""The plan as HTML: for notebooks (`_repr_html_`) and for `draw("plan.html")`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fxperex.plan.plan import Plan
from fxperex.planner.alternatives import Alternative
from fxperex.report.colors import color
from fxperex.report.explain import (
    ALTERNATIVE,
    HEAD,
    MODULE,
    PARAMETER,
    RIGHT,
    alternative_row,
    parameter_rows,
    row,
    totals,
)

STYLE = """<style>
.fxperex { font: 13px/1.4 system-ui, sans-serif; color: #222; background: #fff; }
.fxperex table { border-collapse: collapse; margin: 8px 0 16px; }
.fxperex th, .fxperex td { padding: 2px 10px; text-align: left; white-space: nowrap;
  border-bottom: 1px solid #e4e4e4; }
.fxperex td.right { text-align: right; font-variant-numeric: tabular-nums; }
.fxperex .chip { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 6px; }
</style>"""


def plan_html(plan: Plan, picture: str = "", alternatives: Sequence[Alternative] = ()) -> str:
    """Returns a fragment: the picture, if given, the plan's table, its totals, the alternatives,
    every parameter.
    """
    rows = [(*row(c), c.site.where.partition(", ")[0]) for c in plan.choices]
    parts = [
        STYLE, '<div class="fxperex">', picture,
        _table((*HEAD, *MODULE), rows, [c.strategy for c in plan.choices])
    ]
    parts += [f"<p>{escape(line)}</p>" for line in totals(plan)]
    if alternatives:
        parts += ["<h4>If one strategy served wherever it is legal</h4>",
                  _table(ALTERNATIVE, [alternative_row(a) for a in alternatives], [])]
    parts += [
        "<details><summary>Parameters</summary>",
        _table(PARAMETER, parameter_rows(plan), []), "</details></div>"
    ]
    return "\n".join(parts)


def page(body: str, title: str) -> str:
    """Returns a whole HTML document around a fragment."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]],
           strategies: Sequence[str]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(h)}</th>" for h in head) + "</tr>"]
    for i, cells in enumerate(rows):
        parts = []
        for name, cell in zip(head, cells, strict=True):
            chip = f'<span class="chip" style="background:{color(strategies[i])}"></span>' \
                if strategies and name == "strategy" else ""
            parts.append(
                f'<td class="{"right" if name in RIGHT else "left"}">{chip}{escape(cell)}</td>')
        lines.append("<tr>" + "".join(parts) + "</tr>")
    return "\n".join([*lines, "</table>"])
