"""A table (markdown) and a picture (PNG) of what bench_step.py measured: ratios to the ordinary
step, written beside the JSON.

    python benchmarks/step_report.py [results/cpu/step_float32.json ...]

One group of bars a workload, one bar a candidate: `auto` first, then the backends, the strategies,
the peers that ran. A short line over a group is its aim. What did not run has no bar; the table
says so, and the notes below it why.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pages import figure, table
from record import Row

BASE = "ordinary"
FIRST = ("auto", "eager", "inductor", "compiled")
STRATEGIES = ("naive", "multi", "crb", "unfold", "ghost", "vmap", "fused")
OURS = {"auto": "#009e73", "eager": "#7fcdbb", "inductor": "#41ae76", "compiled": "#7f7f7f"}
TICKS = (0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500)
APART = 10  # numbers beside the axis, at most
WIDE = 4.0  # largest over smallest ratio from which bars are drawn on a log scale


def write(path: Path) -> list[Path]:
    """Returns the paths written beside `path`: the table and the picture."""
    body = json.loads(path.read_text())
    text = path.with_suffix(".md")
    text.write_text(f"{_head(body)}\n\n{_table(body['rows'])}\n{_notes(body['rows'])}")
    picture = path.with_suffix(".png")
    _figure(body).savefig(picture)
    return [text, picture]


def candidates(rows: dict[str, Row]) -> list[str]:
    """Every candidate but the ordinary step that any row names: `auto`, backends, strategies, then
    peers as they come.
    """
    found = dict.fromkeys(c for row in rows.values() for c in row["candidates"] if c != BASE)
    known = [c for c in (*FIRST, *STRATEGIES) if c in found]
    return known + [c for c in found if c not in known]


def ratio(row: Row, name: str, clock: str = "ratio") -> float | None:
    value = row["candidates"].get(name, {}).get(clock)
    return None if value is None else float(value)


def _head(body: Row) -> str:
    s = body["settings"]
    return (f"# The private step over the ordinary one, {s['dtype']}\n\n{body['date']}, "
            f"{body['device']}, torch {body['torch']}, medians of {s['rounds']} interleaved "
            "rounds; wall time, in brackets CPU time. The ordinary step is eager: forward and "
            "backward, no privacy.")


def _table(rows: dict[str, Row]) -> str:
    names = candidates(rows)
    lines = [[
        key,
        str(row["rows"]), f"{1e3 * row['candidates'][BASE]['seconds']:.3g}", f"{row['aim']:g}",
        *(_cell(row, n) for n in names)
    ] for key, row in rows.items()]
    return table(["workload", "rows", "ordinary, ms", "aim", *names], lines)


def _cell(row: Row, name: str) -> str:
    wall, work = ratio(row, name), ratio(row, name, "cpu_ratio")
    if wall is None:
        return "did not run" if name in row["candidates"] else ""
    return f"{wall:.2f}" if work is None else f"{wall:.2f} ({work:.2f})"


def _notes(rows: dict[str, Row]) -> str:
    why = [f"* {key}, {name}: {facts['did_not_run']}" for key, row in rows.items()
           for name, facts in row["candidates"].items() if "did_not_run" in facts]
    return "\n" + "\n".join(why) + "\n" if why else ""


def _figure(body: Row) -> Any:
    from matplotlib import colormaps

    rows = body["rows"]
    names = [n for n in candidates(rows) if any(ratio(r, n) is not None for r in rows.values())]
    others = [n for n in names if n not in OURS]
    colors = OURS | {
        n: colormaps["turbo"]((i + 0.5) / max(len(others), 1))
        for i, n in enumerate(others)
    }
    drawing = figure(max(8.0, 1.5 + len(rows) * (0.6 + 0.16 * len(names))), 5)
    axes = drawing.subplots()
    width = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        found = [(x, ratio(row, name)) for x, row in enumerate(rows.values())]
        bars = [(x - 0.4 + (i + 0.5) * width, v) for x, v in found if v is not None]
        drawn = axes.bar([x for x, _ in bars], [v for _, v in bars], 0.92 * width,
                         color=colors[name], label=name)
        axes.bar_label(drawn, fmt="%.2f", fontsize=6, padding=2,
                       rotation=90 if len(names) > 3 else 0)
    _lines(axes, rows)
    _scale(axes, [v for row in rows.values() for n in names if (v := ratio(row, n)) is not None])
    axes.set(ylabel="times the ordinary step, wall")
    axes.set_title(f"{body['device']}, torch {body['torch']}, {body['settings']['dtype']}")
    axes.set_xticks(range(len(rows)), labels=list(rows), rotation=25, ha="right", fontsize=8)
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower "
                                                          "center", ncols=8, fontsize=8)
    return drawing


def _lines(axes: Any, rows: dict[str, Row]) -> None:
    axes.axhline(1.0, color="#555555", linewidth=1, linestyle="--", label="ordinary step")
    aims = [row["aim"] for row in rows.values()]
    places = range(len(aims))
    left, right = ([x + side for x in places] for side in (-0.45, 0.45))
    axes.hlines(aims, left, right, color="#d62728", linewidth=1.5, label="aim")


def _scale(axes: Any, values: list[float]) -> None:
    low, high = min([1.0, *values]), max([1.0, *values])
    if high / low < WIDE:
        axes.set_ylim(0, 1.15 * high)
        return
    axes.set_yscale("log")
    axes.set_ylim(0.8 * low, 2.2 * high)
    shown: list[float] = []
    for tick in (t for t in TICKS if 0.8 * low <= t <= 1.6 * high):
        if not shown or tick / shown[-1] >= (high / low) ** (1 / APART):
            shown.append(tick)
    axes.set_yticks(shown, labels=[f"{t:g}" for t in shown])
    axes.minorticks_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ours = Path(__file__).parent / "results" / "cpu" / "step_float32.json"
    parser.add_argument("results", nargs="*", type=Path, default=[ours])
    for path in parser.parse_args().results:
        print(*write(path), sep="\n")


if __name__ == "__main__":
    main()
