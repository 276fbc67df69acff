"""The rows of a plan's table, and how any table is aligned as text."""

from __future__ import annotations

from collections.abc import Sequence

from fxperex.plan.byte_sizes import size
from fxperex.plan.choice import Choice

HEAD = ("site", "node", "kind", "B,G,T,D,P", "strategy", "ms", "held", "runner-up")
# Columns of numbers, flush right.
RIGHT = {"ms", "held", "sites ms", "step ms", "peak", "sites", "measured ms", "measured/predicted"}


def aligned(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns the lines of a table under `head`."""
    widths = [max(len(cells[i]) for cells in [head, *rows]) for i in range(len(head))]

    def line(cells: tuple[str, ...]) -> str:
        padded = [cell.rjust(width) if name in RIGHT else cell.ljust(width)
                  for name, cell, width in zip(head, cells, widths, strict=True)]
        return "  ".join(padded).rstrip()

    return [line(head), "  ".join("-" * width for width in widths), *map(line, rows)]


def row(choice: Choice) -> tuple[str, ...]:
    """Returns the cells of HEAD for one site; a star marks measured milliseconds."""
    site, star = choice.site, "*" if choice.strategy in choice.measured else ""
    return (site.name, site.node, site.kind, shape(choice), choice.strategy,
            f"{1e3 * choice.seconds:.3f}{star}", size(choice.cost.held), why_not(choice))


def shape(choice: Choice) -> str:
    """Returns the site's B,G,T,D,P; if it has none, the parameter's shape as 3x4."""
    dims = choice.site.dims
    if dims:
        return ",".join(map(str, (dims.B, dims.G, dims.T, dims.D, dims.P)))
    return "x".join(map(str, choice.site.shape)) or "scalar"


def why_not(choice: Choice) -> str:
    """Returns the runner-up and why it was not chosen: it is slower, or holds more bytes."""
    name = choice.runner_up
    if name is None:
        return "-"
    slower = 1e3 * (choice.times[name] - choice.seconds)
    difference = f"{name} {slower:+.3f} ms"
    if slower > 0:
        return difference
    more = choice.costs[name].held - choice.cost.held
    return f"{difference}, " + (f"holds {size(more)} more" if more > 0 else "not asked for")
