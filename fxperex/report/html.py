"""The plan as HTML: for notebooks and for `draw("plan.html")`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fxperex.plan.alternative import Alternative
from fxperex.plan.plan import Plan
from fxperex.plan.table import RIGHT
from fxperex.report.colors import color
from fxperex.report.explain import (
    ALTERNATIVE,
    PARAMETER,
    SITE,
    alternative_row,
    parameter_rows,
    site_rows,
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
    """Returns a fragment: the picture (if any), the plan's table and totals, the alternatives, and
    every parameter.
    """
    parts = [STYLE, '<div class="fxperex">', picture,
             _table(SITE, site_rows(plan), True)]
    parts += [f"<p>{escape(line)}</p>" for line in plan.totals()]
    if alternatives:
        parts += ["<h4>If one strategy served wherever it is legal</h4>",
                  _table(ALTERNATIVE, [alternative_row(a) for a in alternatives])]
    parts += ["<details><summary>Parameters</summary>", _table(PARAMETER, parameter_rows(plan)),
              "</details></div>"]
    return "\n".join(parts)


def page(body: str, title: str) -> str:
    """Returns an HTML document around a fragment."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]],
           colors: bool = False) -> str:
    """Returns a table; with `colors` each strategy's cell shows its own."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for cells in rows:
        parts = []
        for name, cell in zip(head, cells, strict=True):
            side = "right" if name in RIGHT else "left"
            mark = _chip(cell) if colors and name == "strategy" else ""
            parts.append(f'<td class="{side}">{mark}{escape(cell)}</td>')
        lines.append("<tr>" + "".join(parts) + "</tr>")
    return "\n".join(["<table>", *lines, "</table>"])


def _chip(strategy: str) -> str:
    return f'<span class="chip" style="background:{color(strategy)}"></span>'
