"""What the reports share: a table in markdown, and a figure to draw on."""

from __future__ import annotations

from typing import Any


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns the markdown of a table; all columns but the first are numbers."""
    return "\n".join(
        "| " + " | ".join(r) + " |" for r in [head, ["---"] + ["---:"] * (len(head) - 1), *rows])


def figure(width: float, height: float) -> Any:
    """Returns a figure of `width` by `height` inches that needs no display; `savefig` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(made)
    return made
