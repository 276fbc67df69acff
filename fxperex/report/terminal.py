"""A plan on a terminal: as wide as the window, in the strategies' colours if rich is installed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from fxperex.plan.alternative import Alternative
from fxperex.plan.plan import Plan
from fxperex.plan.table import RIGHT, aligned
from fxperex.report.colors import color
from fxperex.report.explain import (
    ALONE,
    ALTERNATIVE,
    LEGEND,
    PARAMETER,
    SITE,
    alternative_row,
    full,
    parameter_rows,
    remaining,
    site_rows,
)

# What a narrow window does without, in this order.
SPARED = ("module", "node", "runner-up", "held", "kind")


def show(plan: Plan, alternatives: Sequence[Alternative], top: int | None = None) -> None:
    """Prints the plan: on a terminal as wide as it is, elsewhere the text of `explain.full`."""
    if not sys.stdout.isatty():
        print(full(plan, alternatives, top))
        return
    rows, width = site_rows(plan, top), shutil.get_terminal_size().columns
    _table(SITE, rows, width)
    print("\n".join([*remaining(plan, top), *plan.totals(), LEGEND, *plan.notes(), "", ALONE]))
    _table(ALTERNATIVE, [alternative_row(a) for a in alternatives], width)
    if top is None:
        print("\nParameters:")
        _table(PARAMETER, parameter_rows(plan), width)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], width: int) -> None:
    head, rows = narrowed(head, rows, width)
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print("\n".join(line[:width] for line in aligned(head, rows)))
        return
    table = Table(box=None, pad_edge=False)
    for name in head:
        side = "right" if name in RIGHT else "left"
        table.add_column(name, justify=side, overflow="ellipsis",  # type: ignore[arg-type]
                         no_wrap=True)
    for cells in rows:
        table.add_row(*(Text(cell, color(cell) if name == "strategy" else "")
                        for name, cell in zip(head, cells, strict=True)))
    Console(width=width).print(table)


def narrowed(head: tuple[str, ...], rows: list[tuple[str, ...]],
             width: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns `head` and `rows` without the columns that a window of `width` has no room for."""
    for name in SPARED:
        if max(map(len, aligned(head, rows))) <= width:
            break
        if name in head:
            i = head.index(name)
            head = head[:i] + head[i + 1:]
            rows = [cells[:i] + cells[i + 1:] for cells in rows]
    return head, rows
