"""The ways a run may go: straight, interrupted or resumed. Each has a score and its threshold.

The score of a run is `<sum of released updates, canary direction>`: with plain SGD at rate 1, the
parameters before the run minus those after it. No score is better here, because the gradients are
the same at every step.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxperex.privacy.audit.setting import CLIP, Setting
from fxperex.privacy.engine import PrivacyEngine
from fxperex.runtime.module import PerExampleModule

Drive = Callable[[PrivacyEngine], object]
Data = tuple[Tensor, ...]
# Added to the data of a resumed run, so that no step gives the same sum again.
CHANGED = 0.01


@dataclass(frozen=True)
class Run:
    """One run of an attack: its step and data, the direction of its score, and its number, which
    sets its key.
    """

    private: PerExampleModule
    data: Data
    direction: list[Tensor]
    setting: Setting
    number: int


class BrokenOffError(Exception):
    """What a careless training loop might raise inside a logical step."""


def straight(run: Run) -> tuple[float, PrivacyEngine]:
    """Returns (score, engine) of a run from end to end."""
    return _driven(run, list)


def interrupted(run: Run) -> tuple[float, PrivacyEngine]:
    """Returns (score, engine) of a run in which an exception leaves every step after its sum is
    complete, and the step is taken again.
    """

    def drive(engine: PrivacyEngine) -> None:
        for _ in range(len(engine)):
            with contextlib.suppress(BrokenOffError), engine.logical_step() as step:
                for part in step.parts():
                    step.add(*part)
                raise BrokenOffError
            engine.step()

    return _driven(run, drive)


def resumed(run: Run) -> tuple[float, PrivacyEngine]:
    """Returns (score, engine) of a run that crashed after its updates and was resumed on data with
    other sums.

    The score is the distance of the two releases of the same steps: if both had the same noise, the
    bare sums would be left.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, engine = _driven(run, _all_steps, folder)
        changed = replace(run, data=tuple(x + CHANGED for x in run.data))
        after, engine = _driven(changed, _all_steps, folder)
    return abs(before - after), engine


def half(setting: Setting) -> float:
    """Returns the threshold for a score of all updates: half of what the canary may add.

    If it joins only some steps, more: a false alarm then costs more than a miss.
    """
    return CLIP * setting.steps * (0.5 if setting.rate == 1 else 0.8)


def apart(setting: Setting) -> float:
    return 0.5 * CLIP


Way = tuple[Callable[[Run], tuple[float, PrivacyEngine]], Callable[[Setting], float]]
WAYS: dict[str, Way] = {
    "straight": (straight, half), "interrupted": (interrupted, half), "resumed": (resumed, apart)}


def _all_steps(engine: PrivacyEngine) -> None:
    # Not by iterating: that would write a checkpoint at the end.
    for _ in range(len(engine)):
        engine.step()


def _driven(run: Run, drive: Drive, folder: str | None = None) -> tuple[float, PrivacyEngine]:
    parameters = list(run.private.parameters.values())
    with torch.no_grad():
        for p in parameters:
            p.zero_()
    with run.setting.engine(run.private, run.data, run.number, folder=folder,
                            checkpoint_every=run.setting.steps + 1) as engine:
        drive(engine)
    moved = sum(float((p.detach().double() * d).sum())
                for p, d in zip(parameters, run.direction, strict=True))
    return -moved * engine.mechanism.divisor, engine
