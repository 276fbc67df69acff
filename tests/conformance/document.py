"""`fxperex/docs/conformance.md`: what the full corpora gave, by corpus and kind; `results.json`
holds its rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
DOCUMENT = Path(__file__).parents[2] / "fxperex" / "docs" / "conformance.md"
ROW = "conformance"
HEAD = """# Whose tests pass

Written by `pytest tests/conformance -m nightly --write-conformance`, which drives suites that others wrote and ship, from
their installed packages, and hand-made cases for what those leave out. Every case is one `fxperex.transform`, its
per-example gradients, norms and clipped sum compared with a float64 loop of single-example backwards: two thirds of the
cases in float64 (relative error at most 1e-10), a third in float32 (at most 1e-5, or where torch's own float32 loop is
off by as much, four times its error, at most 3e-5). Errors are relative to the example's gradient, or for a bias or the
weight of a product to what rounding is relative to, `|sum_t |g_t|^T |a_t||`, where that is larger. A module that mixes
examples (batch normalisation in training mode) is right where it is refused.

*Offered*: cases with a batch axis and a parameter. *Captured*: the graph was made. A refusal is not a pass.
"""  # noqa: E501
NOTES = """
- **Opacus layers**: `opacus/tests/grad_samples` of opacus 1.6.0, all that its tests hand to `run_test` under hypothesis
  seed 0, doubles left out; every other case with the suite's own loss. Inputs that are packed sequences (58 of the 100
  recurrent draws) are no tensors with a batch axis and are not offered. Bags given as a list of ids with offsets are
  padded. Three further tests, of embedding norms, run as they stand, with this library in place of the function they test.
- **Opacus models**: the model classes of its engine tests.
- **PyTorch module_db**: `torch.testing._internal.common_modules.module_db` without its 881 inputs of one loss. Inputs
  without a batch axis are stacked along the one that their own reference adds; a scalar has none and is not offered.
  Batch normalisation is offered in evaluation mode and in training mode.
- **TensorFlow Privacy tables**: the numbers of its layer tests, re-typed as torch modules.
"""  # noqa: E501
COLUMNS = ("offered", "captured", "right", "wrong", "refused")
LINE = "| {} | {} | {} | {} | {} | {} | {} | {} |"


def written(rows: list[dict[str, Any]]) -> str:
    """Returns the table of `rows`, a total under each corpus, and below it the reasons of what is
    not right.
    """
    lines = [LINE.format("kind", *COLUMNS, "worst float64", "worst float32"), "|" + "---|" * 8]
    for corpus in dict.fromkeys(sorted(r["corpus"] for r in rows)):
        mine = sorted((r for r in rows if r["corpus"] == corpus and r["offered"]),
                      key=lambda r: r["kind"])
        lines.append(_line(f"**{corpus}**", total(mine)))
        lines += [_line(r["kind"], r) for r in mine]
    lines.append(_line("**all**", total(rows)))
    reasons = [f"- {count} x {text}" for r in rows for text, count in r["reasons"].items()]
    return "\n".join(lines + (["", "Not right:", "", *reasons] if reasons else []))


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sums of `rows`, their worst errors."""
    worst = {e: max((r[e] for r in rows), default=0.0) for e in ("error64", "error32")}
    return {c: sum(r[c] for r in rows) for c in COLUMNS} | worst


def _line(name: str, row: dict[str, Any]) -> str:
    return LINE.format(name, *(row[c] for c in COLUMNS),
                       *(f"{row[e]:.0e}" if row[e] else "" for e in ("error64", "error32")))


def recorded() -> list[dict[str, Any]]:
    """Returns the rows of the last full run of each kind."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def save(rows: list[dict[str, Any]]) -> None:
    """Puts `rows` in place of the recorded ones of their kinds, and writes the document anew."""
    known = {(r["corpus"], r["kind"]): r for r in [*recorded(), *rows] if r["offered"]}
    kept = [known[key] for key in sorted(known)]
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(r) for r in kept) + "\n]\n")
    DOCUMENT.write_text(f"{HEAD}\n{written(kept)}\n{NOTES}")


def offered() -> dict[tuple[str, str], int]:
    """Returns {(corpus, kind): cases offered} as recorded."""
    return {(r["corpus"], r["kind"]): r["offered"] for r in recorded()}
