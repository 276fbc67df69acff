"""The summary of a run: a line a stage, what is wrong or failed by name, and the ratios."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpu_stages.rows import ABSENT, BEGUN, ENDED, FAILED, WRONG

WIDTH = 100
Stages = dict[str, dict[str, Any]]


def rows(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns all rows of a stage by "part: row"."""
    return {f"{part}: {name}": row for part, body in stage["parts"].items()
            for name, row in body["rows"].items()}


def unended(stage: dict[str, Any]) -> dict[str, str]:
    """Returns the parts that did not run to their end, and what became of them."""
    states = {part: body["state"] for part, body in stage["parts"].items()}
    return {part: word for part, word in states.items() if word != "ended"}


def state(stage: dict[str, Any]) -> str:
    """Returns "wrong", "failed", or "ended": parts that ran to their end without either."""
    # What is wrong stays wrong, whether or not the row came to its end.
    states = {WRONG if row.get("wrong") else row["state"] for row in rows(stage).values()}
    if WRONG in states:
        return WRONG
    return FAILED if unended(stage) or not stage["parts"] or states & {FAILED, BEGUN} else ENDED


def code(stages: Stages) -> int:
    """Returns the exit code: 1 if a value is wrong, 2 if anything failed or had no time."""
    states = {state(stage) for stage in stages.values()}
    return 1 if WRONG in states else 2 if FAILED in states else 0


def summary(stages: Stages) -> dict[str, Any]:
    """Returns what `summary.json` holds: the machine in full, of the other stages the states of
    their rows."""
    states = {name: {"state": state(stage), "seconds": stage["seconds"], "unended": unended(stage),
                     "rows": {key: row["state"] for key, row in rows(stage).items()}}
              for name, stage in stages.items()}
    return {"code": code(stages), "stages": states, "machine": stages.get("machine"),
            "table": table(stages).splitlines()}


def table(stages: Stages) -> str:
    """Returns the summary as text of at most WIDTH columns."""
    lines = [f"{'stage':<10} {'state':<7} {'seconds':>8}  rows"]
    for name, stage in stages.items():
        counts = Counter(row["state"] for row in rows(stage).values())
        words = ", ".join(f"{n} {word}" for word, n in counts.items())
        lines.append(f"{name:<10} {state(stage):<7} {stage['seconds']:>8.1f}  {words}")
        lines += [f"  {part}: {why}" for part, why in unended(stage).items()]
        for key, row in rows(stage).items():
            if row["state"] not in (ENDED, ABSENT):
                why = "; ".join(map(str, row.get("wrong", []))) or row.get("error", "was cut off")
                lines.append(f"  {row['state']}: {key}: {why}")
            elif row["state"] == ABSENT:
                lines.append(f"  not there: {key}: {row['why']}")
    if "table" in stages:
        lines += ["", *ratios(stages["table"])]
    return "\n".join(" ".join(line.split("\n"))[:WIDTH] for line in lines)


def ratios(stage: dict[str, Any]) -> list[str]:
    """Returns the lines of the table: milliseconds, and times the ordinary compiled step, of every
    candidate."""
    head = ("ms", "low", "high", "ratio", "GiB", "first s")
    widths = (8, 8, 8, 6, 6, 8)
    columns = " ".join(f"{word:>{width}}" for word, width in zip(head, widths, strict=True))
    lines = [f"{'workload':<28} {'candidate':<13} {columns}"]
    for key, row in rows(stage).items():
        for name, facts in row.get("candidates", {}).items():
            if "seconds" not in facts:
                lines.append(f"{key:<28} {name:<13} {facts.get('why', 'was cut off')}")
                continue
            low, middle, high = (1e3 * t for t in facts["seconds"])
            ratio, peak = facts.get("ratio"), facts.get("peak_bytes")
            lines.append(
                f"{key:<28} {name:<13} {middle:>8.2f} {low:>8.2f} {high:>8.2f} "
                f"{'-' if ratio is None else f'{ratio:.2f}':>6} "
                f"{'-' if peak is None else f'{peak / 2**30:.1f}':>6} {facts['first']:>8.1f}"
            )
    return lines
