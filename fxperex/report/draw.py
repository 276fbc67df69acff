"""Both graphs as one picture with a lane for each module: the captured graph on the left, the step
graph on the right.

In the step graph forward runs down and backward up. Every site is a box in its strategy's colour,
as wide as the root of its cost: once for its norm, once for its weighted sum, with the clip factors
between them. A filled sum is an ordinary weight gradient, a hollow one reads stored gradients.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import fx

from fxperex.errors import ConfigError
from fxperex.plan.byte_sizes import size
from fxperex.plan.choice import Choice
from fxperex.plan.plan import Plan
from fxperex.plan.table import shape, why_not
from fxperex.report.canvas import (
    Arrow,
    Canvas,
    Rect,
    Text,
    fitted,
    fitted_end,
    length,
    png,
    svg,
)
from fxperex.report.colors import color
from fxperex.report.explorer import explorer
from fxperex.report.groups import groups
from fxperex.report.interactive import interactive
from fxperex.report.lanes import MOST, Lane, folded_lanes, lanes

TOP, HEIGHT, GAP = 128.0, 34.0, 12.0  # of the lanes
# widths of the columns, from left to right
LEFT, CAPTURED, PASS, NORMS, SUMS = 34.0, 330.0, 64.0, 460.0, 270.0
TABLE = 20  # rows of the side table
SUFFIXES = (".svg", ".png", ".html", ".json")


def draw(path: str | Path, captured: fx.Graph, plan: Plan, title: str = "",
         step: fx.Graph | None = None) -> Path:
    """Returns the path of the picture written: .svg, .png, .html (to zoom, search and click) or
    .json (for Model Explorer). Raises ConfigError for another ending, or if it cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"a picture ends in {', '.join(SUFFIXES)}; got {str(path)!r}")
    canvas = picture(captured, plan, title, step)
    try:
        if path.suffix == ".json":
            path.write_text(explorer(captured, plan, title or "private step", step))
        elif path.suffix == ".png":
            png(canvas, path)
        elif path.suffix == ".svg":
            path.write_text(svg(canvas))
        else:
            unfolded = picture(captured, plan, title, step, most=None)
            path.write_text(interactive([svg(canvas), svg(unfolded)], captured, plan,
                                        title or "plan", step))
    except OSError as error:
        raise ConfigError(f"the picture cannot be written to {str(path)!r}: {error}") from error
    return path


def picture(captured: fx.Graph, plan: Plan, title: str = "",
            step: fx.Graph | None = None, most: int | None = MOST) -> Canvas:
    """Returns the Canvas of a captured graph and the step graph that `plan` makes of it.

    Equal blocks are one, in at most `most` lanes; with None every block has lanes of its own.
    """
    canvas = Canvas()
    rows = lanes(captured, plan, 10**6) if most is None else folded_lanes(captured, plan, most)
    columns = _Columns.start(rows)
    _heading(canvas, plan, title, captured, step, columns)
    places = {lane.name: i for i, lane in enumerate(rows)}
    _blocks(canvas, rows)
    for i, lane in enumerate(rows):
        y = TOP + i * (HEIGHT + GAP)
        _captured(canvas, lane, i, y, places)
        _passes(canvas, columns, i, y, len(rows))
        _chips(canvas, columns, lane, y)
    bottom = TOP + len(rows) * (HEIGHT + GAP) - GAP
    canvas.add(Rect(columns.factors, TOP, 18, bottom - TOP, "#f2f2f2",
                    title="clip factors from the sum of all norms"))
    _side_table(canvas, columns, plan)
    return canvas


class _Columns:
    """The left edge of each column, and `scale`: pixels of a box per root of a second."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.forward = LEFT + CAPTURED + 60
        self.backward = self.forward + PASS + 10
        self.norms = self.backward + PASS + 24
        self.factors = self.norms + NORMS + 8
        self.sums = self.factors + 34
        self.table = self.sums + SUMS + 30

    @staticmethod
    def start(rows: list[Lane]) -> _Columns:
        """Returns the columns in which the widest lane fills the column of norms."""
        roots = [[math.sqrt(group.seconds) for group in groups(lane.choices)[0]]
                 for lane in rows if lane.choices]
        scales = [(NORMS - 10.0 * len(lane)) / max(sum(lane), 1e-12) for lane in roots]
        return _Columns(max(min(scales, default=0.0), 0.0))

    def width(self, seconds: float) -> float:
        return 7.0 + self.scale * math.sqrt(seconds)


def _heading(canvas: Canvas, plan: Plan, title: str, captured: fx.Graph, step: fx.Graph | None,
             at: _Columns) -> None:
    canvas.add(Text(LEFT, 24, title or "private step", 17, bold=True))
    for i, line in enumerate(plan.totals()[:2]):
        canvas.add(Text(LEFT, 44 + 16 * i, line, 11, color="#555555"))
    _legend(canvas, plan)
    step_nodes = "" if step is None else f", {_calls(step)} nodes"
    headings = ((LEFT, f"captured graph, {_calls(captured)} nodes"),
                (at.forward, f"step graph{step_nodes}"),
                (at.norms + 60, "norms, wide as the root of their cost"),
                (at.sums + 16, "weighted sums"), (at.table, "dearest sites"))
    for x, text in headings:
        canvas.add(Text(x, TOP - 12, text, 12, bold=True))
    canvas.add(Text(at.factors + 9, TOP - 12, "clip factors", 10, "middle"),
               Text(at.sums + 122, TOP - 12, "(hollow: of stored gradients)", 10, color="#777777"),
               Text(at.table + 232, TOP - 12, "B,G,T,D,P", 10, color="#777777"),
               Text(at.table + 590, TOP - 12, "held", 10, "end", "#777777"))


def _legend(canvas: Canvas, plan: Plan) -> None:
    """Adds a line with each strategy's colour, sites and time, the dearest site's strategy
    first.
    """
    x, dearest = LEFT, sorted(plan.choices, key=lambda c: -c.seconds)
    for name in dict.fromkeys(c.strategy for c in dearest):
        chosen = [c for c in plan.choices if c.strategy == name]
        took = 1e3 * plan.turns * sum(c.seconds for c in chosen)
        text = f"{name}: {len(chosen)} sites, {took:.2f} ms"
        canvas.add(Rect(x, 73, 12, 12, color(name)), Text(x + 18, 83, text, 11))
        x += 18 + length(text, 11) + 24


def _calls(graph: fx.Graph) -> int:
    return sum(node.op == "call_function" for node in graph.nodes)


def _blocks(canvas: Canvas, rows: list[Lane]) -> None:
    """Adds a frame around the lanes of blocks that are drawn once, with how many they are."""
    start = 0
    for i in range(1, len(rows) + 1):
        former = rows[start]
        if i < len(rows) and (rows[i].block, rows[i].times) == (former.block, former.times):
            continue
        if former.times > 1:
            y, height = TOP + start * (HEIGHT + GAP) - 5, (i - start) * (HEIGHT + GAP) - 2
            canvas.add(Rect(LEFT - 5, y, CAPTURED + 10, height, "#e7eef7", "#7c9cc4",
                            f"{former.times} equal blocks: {former.block}"),
                       Text(LEFT + CAPTURED + 10, y + 12, f"{former.times} x", 12, bold=True,
                            color="#33557f"))
        start = i


def _captured(canvas: Canvas, lane: Lane, i: int, y: float, places: dict[str, int]) -> None:
    result = ",".join(map(str, lane.result)) or "scalar"
    canvas.add(
        Rect(LEFT, y, CAPTURED, HEIGHT, "#fafafa", title=f"{lane.name}: {lane.summary}",
             key=f"module {lane.name}"),
        Text(LEFT + 8, y + 14, fitted_end(lane.name, CAPTURED - 16 - length(result, 10)),
             bold=True),
        Text(LEFT + CAPTURED - 8, y + 14, result, 10, "end", "#777777"),
        Text(LEFT + 8, y + 28, fitted(lane.summary, CAPTURED - 16, 10), 10, color="#555555"))
    for name in lane.reads:
        neighbour = places[name]
        if neighbour == i - 1:
            canvas.add(Arrow(((LEFT + 40, y - GAP), (LEFT + 40, y))))
        elif neighbour < i:
            out = LEFT - 6 - 5 * min(i - neighbour, 5)
            start, end = TOP + neighbour * (HEIGHT + GAP) + HEIGHT * 0.7, y + HEIGHT * 0.3
            canvas.add(Arrow(((LEFT, start), (out, start), (out, end), (LEFT, end))))


def _passes(canvas: Canvas, at: _Columns, i: int, y: float, count: int) -> None:
    middle, bottom, below = y + HEIGHT / 2, y + HEIGHT, y + HEIGHT + GAP
    canvas.add(Arrow(((LEFT + CAPTURED, middle), (at.forward, middle)), "#d0d0d0"))
    for x, label in ((at.forward, "forward"), (at.backward, "backward")):
        canvas.add(Rect(x, y, PASS, HEIGHT, "#eef3f8" if label == "forward" else "#f8f1ea"),
                   Text(x + PASS / 2, middle + 4, label, 10, "middle", "#777777"))
    if i + 1 < count:
        down, up = at.forward + PASS / 2, at.backward + PASS / 2
        canvas.add(Arrow(((down, bottom), (down, below))), Arrow(((up, below), (up, bottom))))
    else:
        canvas.add(Arrow(((at.forward + PASS, middle), (at.backward, middle))))


def _chips(canvas: Canvas, at: _Columns, lane: Lane, y: float) -> None:
    """Adds a site's two boxes for every site of the lane, the dearest first."""
    x, share, middle = at.norms, (SUMS - 10) / NORMS, y + HEIGHT / 2
    if lane.choices:
        canvas.add(Arrow(((at.backward + PASS, middle), (at.norms, middle)), "#d0d0d0"))
    for group in sorted(groups(lane.choices)[0], key=lambda g: -g.seconds):
        choice, count = group.choices[0], len(group.choices)
        w, fill = at.width(group.seconds), color(choice.strategy)
        for k, c in enumerate(group.choices):  # a slice for each block
            canvas.add(Rect(x + k * w / count, y + 2, w / count, HEIGHT - 4, fill, "#555555",
                            _title(c), f"site {c.site.name}"))
        name = fitted(_short(choice, lane.name), w - 4, 10)
        if len(name) > 2:
            canvas.add(Text(x + w / 2, middle + 4, name, 10, "middle", _ink(fill)))
        start, inside, how = at.sums + (x - at.norms) * share, "#ffffff", "of stored gradients"
        if choice.cost.rereads:
            inside, how = fill, "weight gradient of scaled output gradients"
        title = f"weighted sum of {choice.site.name}: {how}"
        canvas.add(Rect(start, y + 8, w * share, HEIGHT - 16, inside, fill, title))
        x += w + 3


def _short(choice: Choice, lane: str) -> str:
    """Returns the parameter's name inside its lane, without the word "weight"."""
    name = ".".join(choice.site.name.split(".")[lane.count(".") + 1 - 2 * lane.count(".."):])
    name = name or choice.site.name
    return name.removesuffix(".weight")


def _title(choice: Choice) -> str:
    return (f"{choice.site.name} ({choice.site.kind}, {shape(choice)}): {choice.strategy}, "
            f"{1e3 * choice.seconds:.3f} ms, {size(choice.cost.held)} held; runner-up "
            f"{why_not(choice)}; {choice.site.where}")


def _ink(fill: str) -> str:
    """Returns the colour of text that can be read on `fill`."""
    red, green, blue = (int(fill[i:i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.3 * red + 0.6 * green + 0.1 * blue > 130 else "#ffffff"


def _side_table(canvas: Canvas, at: _Columns, plan: Plan) -> None:
    x, y = at.table, TOP + 10
    chosen = sorted(groups(plan.choices)[0], key=lambda group: -group.seconds)
    for group in chosen[:TABLE]:
        c = group.choices[0]
        canvas.add(Rect(x, y - 9, 10, 10, color(c.strategy)),
                   Text(x + 16, y, fitted_end(group.name, 210, 11), 11),
                   Text(x + 232, y, shape(c), 10, color="#777777"),
                   Text(x + 400, y, c.strategy, 11),
                   Text(x + 505, y, f"{1e3 * group.seconds:.3f} ms", 11, "end"),
                   Text(x + 590, y, size(sum(c.cost.held for c in group.choices)), 11, "end"))
        y += 17
    if len(chosen) > TABLE:
        remaining = 1e3 * sum(c.seconds for c in chosen[TABLE:])
        text = f"and {len(chosen) - TABLE} more, {remaining:.3f} ms together"
        canvas.add(Text(x + 16, y, text, 11, color="#777777"))
