"""Shapes on a page, written as SVG or painted as PNG."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from fxperex.errors import ConfigError

FONT = 12.0
WIDTH = 0.58  # of a character, in units of the font's size


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    w: float
    h: float
    fill: str = "none"
    stroke: str = "#8a8a8a"
    title: str = ""
    key: str = ""  # what a click on it shows


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    size: float = FONT
    anchor: str = "start"  # start | middle | end
    color: str = "#222222"
    bold: bool = False


@dataclass(frozen=True)
class Arrow:
    points: tuple[tuple[float, float], ...]
    color: str = "#8a8a8a"


@dataclass
class Canvas:
    """What was drawn so far; `width` and `height` grow with it."""

    shapes: list[Rect | Text | Arrow] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0

    def add(self, *shapes: Rect | Text | Arrow) -> None:
        for s in shapes:
            self.shapes.append(s)
            if isinstance(s, Rect):
                self.width, self.height = max(self.width, s.x + s.w), max(self.height, s.y + s.h)
            elif isinstance(s, Text):
                reach = {"start": 1.0, "middle": 0.5, "end": 0.0}[s.anchor] * length(s.text, s.size)
                self.width = max(self.width, s.x + reach)
                self.height = max(self.height, s.y + s.size)


def length(text: str, size: float = FONT) -> float:
    """Returns about how many pixels wide `text` is."""
    return WIDTH * size * len(text)


def fitted(text: str, width: float, size: float = FONT) -> str:
    """Returns `text`, with its end cut off if it is wider than `width`."""
    room = int(width / (WIDTH * size))
    return text if len(text) <= room else text[:max(room - 1, 0)] + "…"


def fitted_end(text: str, width: float, size: float = FONT) -> str:
    """Returns `text`, with its start cut off if it is wider: a path's end tells most."""
    room = int(width / (WIDTH * size))
    return text if len(text) <= room else "…" + text[len(text) - max(room - 1, 0):]


def svg(canvas: Canvas) -> str:
    """Returns the canvas as an SVG document; titles show on hover."""
    w, h = canvas.width + 20, canvas.height + 20
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{w:.0f}" height="{h:.0f}" '
             f'viewBox="0 0 {w:.0f} {h:.0f}" font-family="DejaVu Sans, Verdana, sans-serif">',
             '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
             'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" '
             'fill="#8a8a8a"/></marker></defs>',
             f'<rect width="{w:.0f}" height="{h:.0f}" fill="#ffffff"/>']
    return "\n".join([*lines, *(_svg(s) for s in canvas.shapes), "</svg>\n"])


def _svg(s: Rect | Text | Arrow) -> str:
    if isinstance(s, Rect):
        title = f"<title>{escape(s.title)}</title>" if s.title else ""
        key = f' data-key="{escape(s.key)}"' if s.key else ""
        return (f'<rect x="{s.x:.1f}" y="{s.y:.1f}" width="{s.w:.1f}" height="{s.h:.1f}" rx="3" '
                f'fill="{s.fill}" stroke="{s.stroke}"{key}>{title}</rect>')
    if isinstance(s, Text):
        weight = ' font-weight="bold"' if s.bold else ""
        return (f'<text x="{s.x:.1f}" y="{s.y:.1f}" font-size="{s.size:g}" '
                f'text-anchor="{s.anchor}" fill="{s.color}"{weight}>{escape(s.text)}</text>')
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in s.points)
    return f'<polyline points="{points}" fill="none" stroke="{s.color}" marker-end="url(#tip)"/>'


def png(canvas: Canvas, path: Path) -> None:
    """Writes the canvas as a PNG, two pixels a unit. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('a PNG needs matplotlib: pip install "fxperex[plots]", or draw an .svg '
                          'or .html') from error
    w, h = canvas.width + 20, canvas.height + 20
    figure = Figure(figsize=(w / 100, h / 100), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, w)
    axes.set_ylim(h, 0)
    axes.axis("off")
    for s in canvas.shapes:
        _paint(axes, s)
    figure.savefig(path)


def _paint(axes: Any, s: Rect | Text | Arrow) -> None:
    from matplotlib.patches import FancyArrowPatch, Rectangle

    if isinstance(s, Rect):
        axes.add_patch(
            Rectangle((s.x, s.y), s.w, s.h, facecolor=s.fill, edgecolor=s.stroke, linewidth=0.7))
    elif isinstance(s, Text):
        side = {"start": "left", "middle": "center", "end": "right"}[s.anchor]
        axes.text(s.x, s.y, s.text, fontsize=s.size * 0.72, ha=side, va="baseline", color=s.color,
                  fontweight="bold" if s.bold else "normal", parse_math=False)
    else:
        *path, tip = s.points
        axes.plot([x for x, _ in path], [y for _, y in path], color=s.color, linewidth=0.8)
        axes.add_patch(
            FancyArrowPatch(path[-1], tip, arrowstyle="-|>", mutation_scale=6, color=s.color,
                            linewidth=0.8, shrinkA=0, shrinkB=0))
