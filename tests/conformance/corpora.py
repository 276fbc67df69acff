"""All corpora, and what becomes of a kind's cases: offered, captured, right, wrong, refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import handmade
import opacus_models
import opacus_suite
import tf_tables
import torch
import torch_modules
from case import Case
from judge import REFUSED, RIGHT, WRONG, Verdict, judge


@dataclass(frozen=True)
class Corpus:
    """`cases(kind)` makes the cases of one of the `kinds`."""

    name: str
    kinds: tuple[str, ...]
    cases: Callable[[str], list[Case]]


CORPORA = {c.name: c for c in (
    Corpus("Opacus layers", opacus_suite.KINDS, opacus_suite.cases),
    Corpus("Opacus models", opacus_models.KINDS, opacus_models.cases),
    Corpus("PyTorch module_db", torch_modules.KINDS, torch_modules.cases),
    Corpus("TensorFlow Privacy tables", tuple(tf_tables.TABLES), tf_tables.cases),
    Corpus("hand-made", tuple(handmade.TABLES), handmade.cases))}


@dataclass
class Tally:
    """A row of the table. `reasons`: what was wrong or refused, and how often."""

    corpus: str
    kind: str
    offered: int = 0
    captured: int = 0
    right: int = 0
    wrong: int = 0
    refused: int = 0
    error64: float = 0.0
    error32: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def tally(corpus: str, kind: str, most: int | None = None) -> Tally:
    """Returns the Tally of the cases of `kind`, or of `most` of them, evenly spread; every third in
    float32.
    """
    cases = CORPORA[corpus].cases(kind)
    if most is not None and len(cases) > most:
        cases = [cases[i * len(cases) // most] for i in range(most)]
    dtypes = [torch.float32 if i % 3 == 2 else torch.float64 for i in range(len(cases))]
    return counted(corpus, kind, [(judge(c, d), d) for c, d in zip(cases, dtypes, strict=True)])


def counted(corpus: str, kind: str, verdicts: list[tuple[Verdict, torch.dtype]]) -> Tally:
    """Returns the Tally of `verdicts`."""
    states = Counter(v.state for v, _ in verdicts)
    errors = {d: max((v.error for v, at in verdicts if at == d and v.state == RIGHT), default=0.0)
              for d in (torch.float64, torch.float32)}
    reasons = Counter(f"{v.state}: {v.case}: {v.why}" for v, _ in verdicts if v.state != RIGHT)
    return Tally(corpus, kind, len(verdicts), sum(v.captured for v, _ in verdicts), states[RIGHT],
                 states[WRONG], states[REFUSED], errors[torch.float64], errors[torch.float32],
                 dict(reasons))
