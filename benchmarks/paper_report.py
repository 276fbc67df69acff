"""Tables (markdown) and pictures (PNG) of what bench_paper.py measured, beside the paper's own
figures (paper/*.csv).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from pages import figure, table

PAPER = Path(__file__).parent / "paper"
COLORS = {
    "no_dp": "#7f7f7f", "naive": "#000000", "multi": "#e69f00", "crb": "#0072b2", "auto": "#009e73"
}
THEIRS = ("naive", "multi", "crb")
OURS = (*THEIRS, "auto")
TICKS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
Rows = dict[str, dict[str, Any]]


def write(path: Path) -> list[Path]:
    """Returns the paths written beside `path`, the JSON of bench_paper.py: one .md, one .png for
    each part it holds.
    """
    if not path.exists():
        return []
    body = json.loads(path.read_text())
    parts = {
        name: {k: r
               for k, r in body["rows"].items()
               if k.startswith(name + ",")}
        for name in ("table", "batch", "toy")
    }
    text = path.with_suffix(".md")
    text.write_text(
        "\n\n".join([_head(body), *(TABLES[name](rows) for name, rows in parts.items() if rows)]) +
        "\n")
    drawn = [
        _saved(PICTURES[name](rows), path.with_name(f"{path.stem}_{name}.png"))
        for name, rows in parts.items()
        if rows
    ]
    return [text, *drawn]


def _head(body: dict[str, Any]) -> str:
    s = body["settings"]
    sizes = (f"toy CNNs {s['toy_size']} px, sweep of batches {s['batch_size']} px, AlexNet and "
             f"VGG16 {s['table_size']} px")
    return (f"# The paper's question on {body['device']}\n\n{body['date']}, torch "
            f"{body['torch']}, medians of {s['rounds']} interleaved rounds, `auto` on the "
            f"{s['backend']} backend. Images: {sizes}; the paper (arXiv 1912.06015): 256 px on a "
            "P100, PyTorch 1.1.")


def _read(name: str) -> list[dict[str, str]]:
    lines = [line for line in (PAPER / name).read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    return f"## {title}\n\n{table(head, rows)}"


def _over(row: dict[str, Any], one: str, two: str) -> float:
    return float(row["seconds"][one] / row["seconds"][two])


def _networks(rows: Rows) -> str:
    made = []
    for line in _read("table1.csv"):
        row = rows.get(f"table,{line['model']}")
        if row is None:
            continue
        base = float(line["no_dp"])
        theirs = [f"{float(line[k]) / base:.2f}" for k in THEIRS]
        ours = [f"{_over(row, k, 'no_dp'):.2f}" for k in OURS]
        made.append([line["model"], line["batch"], *theirs, *ours])
    return _table("AlexNet and VGG16: times the step without privacy",
                  ["network", "B", *(f"paper {k}" for k in THEIRS), *OURS], made)


def _batches(rows: Rows) -> str:
    made = []
    for line in _read("figure_batch_size.csv"):
        row = rows.get(f"batch,{line['batch']}")
        if row is not None:
            theirs = [f"{float(line[k]) / float(line['crb']):.2f}" for k in ("naive", "multi")]
            made.append([
                line["batch"], *theirs,
                *(f"{_over(row, k, 'crb'):.2f}" for k in ("naive", "multi", "auto", "no_dp"))
            ])
    return _table("Batch sizes, 3 layers, 256 channels, kernel 5: times the step under crb",
                  ["B", "paper naive", "paper multi", "naive", "multi", "auto", "no DP"], made)


def _toys(rows: Rows) -> str:
    made, same = [], 0
    for line in _read("figure_toy.csv"):
        row = rows.get(_key(line))
        if row is not None:
            theirs, ours = float(line["multi"]) / float(line["crb"]), _over(row, "multi", "crb")
            same += (theirs > 1) == (ours > 1)
            made.append([
                line["layers"], line["channel_rate"], line["kernel"], f"{theirs:.2f}",
                f"{ours:.2f}", *(f"{_over(row, k, 'no_dp'):.2f}" for k in OURS)
            ])
    head = [
        "layers", "rate", "kernel", "paper multi/crb", "multi/crb", *(f"{k}/no DP" for k in OURS)
    ]
    summary = ("The same one of multi and crb is faster, in the paper and here, "
               f"in {same} of {len(made)}.")
    return f"{_table('Toy CNNs, batch 8', head, made)}\n\n{summary}"


def _key(line: dict[str, str]) -> str:
    return f"toy,{line['layers']},{float(line['channel_rate']):g},{line['kernel']}"


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    drawing = figure(width, height)
    return drawing, drawing.subplots(rows, columns, squeeze=False)


def _saved(drawing: Any, path: Path) -> Path:
    drawing.savefig(path)
    return path


def _draw_networks(rows: Rows) -> Any:
    """Bars: times the step without privacy, the paper's beside ours."""
    drawing, ((axes,),) = _figure(1, 1, 8, 4)
    lines = [line for line in _read("table1.csv") if f"table,{line['model']}" in rows]
    bars: list[tuple[str, str, float]] = []
    for line in lines:
        bars += [
            (f"{line['model']}\npaper", k, float(line[k]) / float(line["no_dp"])) for k in THEIRS
        ]
        row = rows[f"table,{line['model']}"]
        bars += [(f"{line['model']}\nhere", k, _over(row, k, "no_dp")) for k in OURS]
    groups = list(dict.fromkeys(g for g, _, _ in bars))
    for name in OURS:
        mine = [(groups.index(g) + 0.2 * list(COLORS).index(name) - 0.5, v)
                for g, k, v in bars
                if k == name]
        drawn = axes.bar([x for x, _ in mine], [v for _, v in mine], 0.18, color=COLORS[name],
                         label=name)
        axes.bar_label(drawn, fmt="%.2f", fontsize=7, padding=1)
    axes.axhline(1.0, color=COLORS["no_dp"], linewidth=1, linestyle="--", label="no privacy")
    axes.set(yscale="log", ylabel="times the step without "
                                  "privacy", xticks=range(len(groups)), xticklabels=groups)
    axes.margins(y=0.15)
    axes.legend(ncols=5, fontsize=8)
    return drawing


def _draw_batches(rows: Rows) -> Any:
    """Seconds against batch size: the paper's for 20 steps on the left, ours for one on the
    right.
    """
    drawing, ((left, right),) = _figure(1, 2, 10, 4)
    theirs = _read("figure_batch_size.csv")
    for name in THEIRS:
        left.plot([int(r["batch"]) for r in theirs], [float(r[name]) / 20 for r in theirs], "o-",
                  color=COLORS[name], label=name)
    sizes = sorted(int(key.partition(",")[2]) for key in rows)
    for name in ("naive", "multi", "crb", "auto", "no_dp"):
        right.plot(sizes, [rows[f"batch,{b}"]["seconds"][name] for b in sizes], "o-",
                   color=COLORS[name], label="no privacy" if name == "no_dp" else name)
    for axes, title in ((left, "the paper, 256 px, "
                         "P100"), (right, f"here, {rows[f'batch,{sizes[0]}']['input'][-1]} px")):
        axes.set(title=title, xlabel="batch size", ylabel="seconds a step", ylim=(0, None))
        axes.legend(fontsize=8)
    return drawing


def _draw_toys(rows: Rows) -> Any:
    """Upper: times the step without privacy, by channel rate. Lower: multi/crb, the paper's
    dashed.
    """
    drawing, panels = _figure(2, 6, 18, 6.5)
    lines = _read("figure_toy.csv")
    most = 1.2 * max(_over(row, name, "no_dp") for row in rows.values() for name in OURS)
    for column, (kernel, layers) in enumerate((k, n) for k in ("3", "5") for n in ("2", "3", "4")):
        mine = [
            line for line in lines
            if (line["kernel"], line["layers"]) == (kernel, layers) and _key(line) in rows
        ]
        if not mine:
            panels[0][column].axis("off")
            panels[1][column].axis("off")
            continue
        rates = [float(line["channel_rate"]) for line in mine]
        upper, lower = panels[0][column], panels[1][column]
        for name in OURS:
            upper.plot(rates, [_over(rows[_key(line)], name, "no_dp") for line in mine], "o-",
                       color=COLORS[name], label=name)
        upper.axhline(1.0, color=COLORS["no_dp"], linewidth=1, linestyle="--")
        lower.plot(rates, [_over(rows[_key(line)], "multi", "crb") for line in mine], "o-",
                   color="#222222", label="here")
        lower.plot(rates, [float(line["multi"]) / float(line["crb"]) for line in mine], "o--",
                   color="#999999", label="paper")
        lower.axhline(1.0, color="#cccccc", linewidth=1)
        upper.set(title=f"{layers} layers, kernel {kernel}", yscale="log", ylim=(0.5, most))
        upper.set_yticks([t for t in TICKS if t <= most],
                         labels=[f"{t:g}" for t in TICKS if t <= most], minor=False)
        upper.minorticks_off()
        lower.set(xlabel="channel rate")
    panels[0][0].set_ylabel("times the step without privacy")
    panels[1][0].set_ylabel("multi / crb (above 1: crb wins)")
    for row in panels:
        row[0].legend(fontsize=8)
    return drawing


TABLES = {"table": _networks, "batch": _batches, "toy": _toys}
PICTURES = {"table": _draw_networks, "batch": _draw_batches, "toy": _draw_toys}
