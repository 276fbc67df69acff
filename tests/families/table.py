"""Writes `fxperex/docs/coverage.md`: every family, measured now. `python
tests/families/table.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from measure import Row, measure
from zoo import FAMILIES

DOCUMENT = Path(__file__).parents[2] / "fxperex" / "docs" / "coverage.md"
HEAD = """# Which model families work

Written by `python tests/families/table.py`, which builds each family at a small size with random weights and dropout 0,
in float32, and compares the step under `strategy="auto"` with a float64 loop of single-example backwards. BatchNorm is
replaced by GroupNorm. *Export* says whether the batch size stays symbolic; "two sizes" means that the model's own code
fixes it, and the proof is made on exports at two sizes. *Error* is the larger of the relative errors of the norms and of
the clipped sum. *Others* is how far, relatively, one example's gradient moves at most when every other example is
replaced: by NaN, by 1e30, by zeros, by copies. The tests assert both below 1e-5 for every row.

| family | export | sites | strategies chosen | error | others |
|---|---|---|---|---|---|
"""  # noqa: E501


def document() -> str:
    return DOCUMENT.read_text()


def named(text: str) -> set[str]:
    """Returns the families that the document lists."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {
        line.split("|")[1].strip()
        for line in lines
        if not line.startswith(("| family", "| **"))
    }


def line(row: Row) -> str:
    if row.refusal:
        return f"| {row.name} | refused: {row.refusal} | | | | |"
    export = "symbolic" if row.symbolic else "two sizes"
    chosen = ", ".join(f"{name} {count}" for name, count in row.strategies.items())
    error = max(row.norms, row.sums)
    cells = row.name, export, row.sites, chosen, f"{error:.1e}", f"{row.leak:.1e}"
    return f"| {' | '.join(map(str, cells))} |"


def main(names: list[str]) -> None:
    """Measures `names` (all, if none are given); keeps the other lines as they were."""
    known = {}
    if DOCUMENT.exists():
        known = {
            text.split("|")[1].strip(): text
            for text in document().splitlines()
            if text.startswith("| ")
        }
    for name in names or list(FAMILIES):
        known[name] = line(measure(name))
        print(known[name], flush=True)
    groups = dict.fromkeys(f.group for f in FAMILIES.values())
    body = []
    for group in groups:
        body.append(f"| **{group}** | | | | | |")
        body += [known[f.name] for f in FAMILIES.values() if f.group == group and f.name in known]
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(HEAD + "\n".join(body) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
