"""Both graphs as one picture: a lane per module; the captured graph on the left, the step graph on
the right.

In the step graph forward runs down, backward up; every site is a box coloured by its strategy and
as wide as its cost, once for its norm and once for its weighted sum, with the clip factors between.
A filled sum is an ordinary weight gradient, a hollow one reads stored per-example gradients.
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
from fxperex.report.canvas import Arrow, Canvas, Rect, Text, fitted, length, png, svg
from fxperex.report.colors import color
from fxperex.report.html import page, plan_html
from fxperex.report.lanes import Lane, lanes

TOP, HEIGHT, GAP = 128.0, 34.0, 12.0  # of the lanes
# widths of the columns, from left to right
LEFT, CAPTURED, PASS, NORMS, SUMS = 34.0, 330.0, 64.0, 460.0, 270.0
TABLE = 20  # rows of the side table
SUFFIXES = (".svg", ".png", ".html")


def draw(path: str | Path, captured: fx.Graph, plan: Plan, title: str = "",
         step: fx.Graph | None = None) -> Path:
    """Returns the path of the picture written, an .svg, .png or .html. Raises ConfigError for
    another ending.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"a picture ends in {', '.join(SUFFIXES)}; got {str(path)!r}")
    canvas = picture(captured, plan, title, step)
    try:
        if path.suffix == ".png":
            png(canvas, path)
        else:
            path.write_text(
                svg(canvas) if path.suffix ==
                ".svg" else page(plan_html(plan, svg(canvas)), title or "plan"))
    except OSError as error:
        raise ConfigError(f"the picture cannot be written to {str(path)!r}: {error}") from error
    return path


def picture(captured: fx.Graph, plan: Plan, title: str = "",
            step: fx.Graph | None = None) -> Canvas:
    """Returns the Canvas of a captured graph and the step graph that `plan` makes of it."""
    canvas, rows = Canvas(), lanes(captured, plan)
    columns = _Columns.start(rows)
    _heading(canvas, plan, title, captured, step, columns)
    places = {lane.name: i for i, lane in enumerate(rows)}
    for i, lane in enumerate(rows):
        y = TOP + i * (HEIGHT + GAP)
        _captured(canvas, lane, i, y, places)
        _passes(canvas, columns, i, y, len(rows))
        _chips(canvas, columns, lane, y)
    bottom = TOP + len(rows) * (HEIGHT + GAP) - GAP
    canvas.add(Rect(columns.factors, TOP, 18, bottom - TOP, "#f2f2f2", title="clip factors from "
                                                                             "the sum of all "
                                                                             "norms"))
    _side_table(canvas, columns, plan)
    return canvas


class _Columns:
    """Where the columns stand, and pixels per root second, so that the widest lane fills its
    column.
    """

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
        roots = [(sum(math.sqrt(c.seconds)
                      for c in lane.choices), len(lane.choices))
                 for lane in rows
                 if lane.choices]
        room = [(NORMS - 10.0 * count) / max(total, 1e-12) for total, count in roots]
        return _Columns(max(min(room, default=0.0), 0.0))

    def width(self, choice: Choice) -> float:
        return 7.0 + self.scale * math.sqrt(choice.seconds)


def _heading(canvas: Canvas, plan: Plan, title: str, captured: fx.Graph, step: fx.Graph | None,
             at: _Columns) -> None:
    canvas.add(Text(LEFT, 24, title or "private step", 17, bold=True))
    for i, line in enumerate(plan.totals()[:2]):
        canvas.add(Text(LEFT, 44 + 16 * i, line, 11, color="#555555"))
    x = LEFT
    for name in dict.fromkeys(c.strategy for c in sorted(plan.choices, key=lambda c: -c.seconds)):
        chosen = [c for c in plan.choices if c.strategy == name]
        summary = (f"{name}: {len(chosen)} sites, "
                   f"{1e3 * plan.turns * sum(c.seconds for c in chosen):.2f} ms")
        canvas.add(Rect(x, 73, 12, 12, color(name)), Text(x + 18, 83, summary, 11))
        x += 18 + length(summary, 11) + 24
    nodes = sum(n.op == "call_function" for n in captured.nodes)
    counted = (f", {sum(n.op == 'call_function' for n in step.nodes)} "
               "nodes" if step is not None else "")
    for x, summary in ((LEFT, f"captured graph, {nodes} "
                              "nodes"), (at.forward, f"step graph{counted}"),
                    (at.norms + 60, "norms, wide as the root of their "
                                    "cost"), (at.sums + 16, "weighted sums"),
                    (at.table, "dearest sites")):
        canvas.add(Text(x, TOP - 12, summary, 12, bold=True))
    canvas.add(Text(at.factors + 9, TOP - 12, "clip factors", 10, "middle"),
               Text(at.sums + 122, TOP - 12, "(hollow: of stored gradients)", 10, color="#777777"),
               Text(at.table + 232, TOP - 12, "B,G,T,D,P", 10, color="#777777"),
               Text(at.table + 590, TOP - 12, "held", 10, "end", "#777777"))


def _captured(canvas: Canvas, lane: Lane, i: int, y: float, places: dict[str, int]) -> None:
    result = ",".join(map(str, lane.result)) or "scalar"
    canvas.add(
        Rect(LEFT, y, CAPTURED, HEIGHT, "#fafafa", title=f"{lane.name}: {lane.told}"),
        Text(LEFT + 8, y + 14, fitted(lane.name, CAPTURED - 16 - length(result, 10)), bold=True),
        Text(LEFT + CAPTURED - 8, y + 14, result, 10, "end", "#777777"),
        Text(LEFT + 8, y + 28, fitted(lane.told, CAPTURED - 16, 10), 10, color="#555555"))
    for name in lane.reads:
        neighbour = places[name]
        if neighbour == i - 1:
            canvas.add(Arrow(((LEFT + 40, y - GAP), (LEFT + 40, y))))
        elif neighbour < i:
            out = LEFT - 6 - 5 * min(i - neighbour, 5)
            start = TOP + neighbour * (HEIGHT + GAP) + HEIGHT * 0.7
            canvas.add(
                Arrow(((LEFT, start), (out, start), (out, y + HEIGHT * 0.3), (LEFT,
                                                                              y + HEIGHT * 0.3))))


def _passes(canvas: Canvas, at: _Columns, i: int, y: float, count: int) -> None:
    canvas.add(Arrow(((LEFT + CAPTURED, y + HEIGHT / 2), (at.forward, y + HEIGHT / 2)), "#d0d0d0"))
    for x, label in ((at.forward, "forward"), (at.backward, "backward")):
        canvas.add(Rect(x, y, PASS, HEIGHT, "#eef3f8" if label == "forward" else "#f8f1ea"),
                   Text(x + PASS / 2, y + HEIGHT / 2 + 4, label, 10, "middle", "#777777"))
    if i + 1 < count:
        canvas.add(
            Arrow(((at.forward + PASS / 2, y + HEIGHT), (at.forward + PASS / 2, y + HEIGHT + GAP))),
            Arrow(
                ((at.backward + PASS / 2, y + HEIGHT + GAP), (at.backward + PASS / 2, y + HEIGHT))))
    else:
        canvas.add(Arrow(((at.forward + PASS, y + HEIGHT / 2), (at.backward, y + HEIGHT / 2))))


def _chips(canvas: Canvas, at: _Columns, lane: Lane, y: float) -> None:
    x, share = at.norms, (SUMS - 10) / NORMS
    if lane.choices:
        canvas.add(
            Arrow(((at.backward + PASS, y + HEIGHT / 2), (at.norms, y + HEIGHT / 2)), "#d0d0d0"))
    for choice in sorted(lane.choices, key=lambda c: -c.seconds):
        w, fill = at.width(choice), color(choice.strategy)
        canvas.add(Rect(x, y + 2, w, HEIGHT - 4, fill, "#555555", _title(choice)))
        name = fitted(_short(choice, lane.name), w - 4, 10)
        if len(name) > 2:
            canvas.add(Text(x + w / 2, y + HEIGHT / 2 + 4, name, 10, "middle", _ink(fill)))
        start = at.sums + (x - at.norms) * share
        canvas.add(
            Rect(
                start, y + 8, w * share, HEIGHT - 16, fill if choice.cost.rereads else "#ffffff",
                fill, "weighted sum of "
                f"{choice.site.name}: " + ("weight gradient of scaled output gradients"
                                           if choice.cost.rereads else "of stored gradients")))
        x += w + 3


def _short(choice: Choice, lane: str) -> str:
    """What the parameter is called inside its lane, without the word "weight"."""
    name = choice.site.name.removeprefix(lane + ".") if lane else choice.site.name
    return name.removesuffix(".weight")


def _title(choice: Choice) -> str:
    return (f"{choice.site.name} ({choice.site.kind}, {shape(choice)}): {choice.strategy}, "
            f"{1e3 * choice.seconds:.3f} ms, {size(choice.cost.held)} held; runner-up "
            f"{why_not(choice)}; {choice.site.where}")


def _ink(fill: str) -> str:
    red, green, blue = (int(fill[i:i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.3 * red + 0.6 * green + 0.1 * blue > 130 else "#ffffff"


def _side_table(canvas: Canvas, at: _Columns, plan: Plan) -> None:
    x, y = at.table, TOP + 10
    chosen = sorted(plan.choices, key=lambda c: -c.seconds)
    for c in chosen[:TABLE]:
        canvas.add(Rect(x, y - 9, 10, 10, color(c.strategy)),
                   Text(x + 16, y, fitted(c.site.name, 210, 11), 11),
                   Text(x + 232, y, shape(c), 10, color="#777777"),
                   Text(x + 400, y, c.strategy, 11),
                   Text(x + 505, y, f"{1e3 * c.seconds:.3f} ms", 11, "end"),
                   Text(x + 590, y, size(c.cost.held), 11, "end"))
        y += 17
    if len(chosen) > TABLE:
        remaining = 1e3 * sum(c.seconds for c in chosen[TABLE:])
        canvas.add(Text(x + 16, y, f"and {len(chosen) - TABLE} more, {remaining:.3f} ms "
                                   "together", 11, color="#777777"))
