"""One canary, many runs: the engine as shipped with the canary's row and without, told apart by
what was released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxperex.privacy.audit import bounds
from fxperex.privacy.audit.canaries import CANARIES, Canary
from fxperex.privacy.audit.setting import CLIP, Setting
from fxperex.privacy.audit.ways import WAYS, Run
from fxperex.privacy.checks import one_of
from fxperex.privacy.engine import PrivacyEngine
from fxperex.runtime.module import PerExampleModule
from fxperex.transform import transform

PHYSICAL = 8
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Attack:
    """A canary, the way its runs go, and what that changes in the setting; `most` runs a side where
    they are slow.
    """

    canary: Canary
    way: str = "straight"
    change: dict[str, Any] = field(default_factory=dict)
    most: int | None = None


TIGHT = "dirac weight"  # of which the audit must show at least half of the claim
# A resumed run waits for the disk a dozen times. The same noise twice would show whatever its size:
# a small claim does.
ATTACKS = {name: Attack(canary)
           for name, canary in CANARIES.items()} | {
               "sampled": Attack(CANARIES["dirac weight"], "straight", {"rate": 0.5}),
               "interrupted": Attack(CANARIES["dirac weight"], "interrupted"), "resumed": Attack(
                   CANARIES["dirac weight"], "resumed", {"rate": 0.5, "noise_multiplier": 8.0}, 200)
           }


@dataclass(frozen=True)
class Verdict:
    """The claimed epsilon and what the attack shows it to be at least, at `confidence`."""

    attack: str
    claimed: float
    lower: float
    method: str
    runs: int
    confidence: float

    @property
    def holds(self) -> bool:
        return self.lower <= self.claimed


def audit(name: str, setting: Setting, *, claimed: float | None = None,
          report: Report = lambda done, total: None) -> Verdict:
    """Returns the Verdict of one of ATTACKS under `setting`. Raises FxperexError.

    claimed: the epsilon, where it is known already; else the engine's own.
    """
    attack = ATTACKS[one_of(name, "attack", ATTACKS)]
    setting = replace(setting, runs=min(setting.runs, attack.most or setting.runs), **attack.change)
    present, absent, engine = scores(attack, setting, report)
    if claimed is None:
        claimed = engine.epsilon() if attack.canary.there else 0.0
    lower = getattr(bounds, setting.method)(present, absent, WAYS[attack.way][1](setting),
                                            setting.delta, setting.confidence)
    return Verdict(name, claimed, lower, setting.method, setting.runs, setting.confidence)


def scores(
        attack: Attack, setting: Setting,
        report: Report = lambda done, total: None) -> tuple[np.ndarray, np.ndarray, PrivacyEngine]:
    """Returns the scores of `setting.runs` runs with and without the canary, and the last engine of
    those with it.
    """
    canary, private = attack.canary, prepare(attack.canary)
    public, row, direction = canary.public(), canary.row(), canary.direction()
    joined = tuple(torch.cat([x, r]) for x, r in zip(public, row, strict=True))
    # Known to the attacker, like all but the canary: what the public rows move by themselves.
    public_part = _along(private.sums(
        *public)[1], direction) * setting.rate * setting.steps if attack.way != "resumed" else 0.0
    outcomes: list[list[float]] = [[], []]
    for number in range(2 * setting.runs):
        side = number // setting.runs
        score, engine = WAYS[attack.way][0](Run(private, joined if side else public, direction,
                                                setting, number))
        outcomes[side].append(score - public_part)
        report(number + 1, 2 * setting.runs)
    return np.array(outcomes[1]), np.array(outcomes[0]), engine


def prepare(canary: Canary) -> PerExampleModule:
    """Returns the emitted step of the canary's model. Raises FxperexError."""
    return transform(canary.model(), canary.public(), forward=lambda model, x, y: model(x, y),
                     clip=CLIP, strategy=canary.strategy, physical_batch=PHYSICAL, backend="eager")


def _along(sums: list[Tensor], direction: list[Tensor]) -> float:
    return sum(float((s.double() * d).sum()) for s, d in zip(sums, direction, strict=True))
