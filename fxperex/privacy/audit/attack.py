"""One canary, many runs of the engine as shipped, with the canary's row and without it."""

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
    """A canary, the way its runs go, and what that changes in the setting. `limit`: runs on
    either side, if they are slow.
    """

    canary: Canary
    way: str = "straight"
    change: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None


TIGHT = "dirac weight"  # the audit must show at least half of this attack's claim
DIRAC = CANARIES[TIGHT]
# A resumed run waits for the disk a dozen times. Noise that is used twice shows at any size, so a
# small claim is enough.
RESUMED = Attack(DIRAC, "resumed", {"rate": 0.5, "noise_multiplier": 8.0}, 200)
ATTACKS = {
    **{name: Attack(canary) for name, canary in CANARIES.items()},
    "sampled": Attack(DIRAC, "straight", {"rate": 0.5}),
    "interrupted": Attack(DIRAC, "interrupted"), "resumed": RESUMED}


@dataclass(frozen=True)
class Verdict:
    """The claimed epsilon, and the lower bound that the attack shows at `confidence`."""

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

    claimed: the epsilon to test; default the engine's own.
    """
    attack = ATTACKS[one_of(name, "attack", ATTACKS)]
    runs = min(setting.runs, attack.limit or setting.runs)
    setting = replace(setting, runs=runs, **attack.change)
    present, absent, engine = scores(attack, setting, report)
    if claimed is None:
        claimed = engine.epsilon() if attack.canary.adds else 0.0
    bound, threshold = getattr(bounds, setting.method), WAYS[attack.way][1](setting)
    lower = bound(present, absent, threshold, setting.delta, setting.confidence)
    return Verdict(name, claimed, lower, setting.method, setting.runs, setting.confidence)


def scores(attack: Attack, setting: Setting, report: Report = lambda done, total: None) \
        -> tuple[np.ndarray, np.ndarray, PrivacyEngine]:
    """Returns the scores of `setting.runs` runs with the canary, those without it, and the engine
    of the last run with it.
    """
    canary, private = attack.canary, prepare(attack.canary)
    public, row, direction = canary.public(), canary.row(), canary.direction()
    joined = tuple(torch.cat([x, r]) for x, r in zip(public, row, strict=True))
    # What the public rows move by themselves; the attacker knows everything except the canary.
    public_part = 0.0
    if attack.way != "resumed":
        public_part = _along(private.sums(*public)[1], direction) * setting.rate * setting.steps
    outcomes: list[list[float]] = [[], []]
    for number in range(2 * setting.runs):
        side = number // setting.runs
        run = Run(private, joined if side else public, direction, setting, number)
        score, engine = WAYS[attack.way][0](run)
        outcomes[side].append(score - public_part)
        report(number + 1, 2 * setting.runs)
    return np.array(outcomes[1]), np.array(outcomes[0]), engine


def prepare(canary: Canary) -> PerExampleModule:
    """Returns the emitted step of the canary's model. Raises FxperexError."""
    return transform(canary.model(), canary.public(), forward=lambda model, x, y: model(x, y),
                     clip=CLIP, strategy=canary.strategy, physical_batch=PHYSICAL, backend="eager")


def _along(sums: list[Tensor], direction: list[Tensor]) -> float:
    return sum(float((s.double() * d).sum()) for s, d in zip(sums, direction, strict=True))
