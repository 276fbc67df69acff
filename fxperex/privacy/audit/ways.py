"""The ways a run may go, each with the score that shows the canary best and the threshold it is
held against.

The score of a run is `<sum of released updates, canary direction>`: with plain SGD at rate 1, the
parameters before the run less those after. Nothing scores better here, for the gradients are the
same at every step.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxperex.privacy.audit.setting import CLIP, Setting
from fxperex.privacy.engine import PrivacyEngine
from fxperex.runtime.module import PerExampleModule

Drive = Callable[[PrivacyEngine], object]
Data = tuple[Tensor, ...]
# what is added to the data of a resumed run, so that no step is replayed bit for bit
CHANGED = 0.01


@dataclass(frozen=True)
class Run:
    """One run to be made: on what, with which key, and along which direction it is looked at."""

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
    """Returns (score, engine) of a run whose every step is left by an exception, its sum complete,
    and taken again.
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
    """Returns (score, engine) of a run that crashed after its updates and was gone on with, on data
    summing to other sums.

    The score is how far the two releases of the same steps are apart: the same noise in both would
    leave the bare sums.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, engine = _driven(run, _all_steps, folder)
        resumed = Run(run.private, tuple(x + CHANGED for x in run.data), run.direction, run.setting,
                      run.number)
        second, engine = _driven(resumed, _all_steps, folder)
    return abs(before - second), engine


def half(setting: Setting) -> float:
    """Returns the threshold for a score of every step's updates: half of all that the canary may
    add.

    Where it joins only some steps, nearer to what it adds when it joins: a false alarm costs more
    than a miss.
    """
    return CLIP * setting.steps * (0.5 if setting.rate == 1 else 0.8)


def apart(setting: Setting) -> float:
    return 0.5 * CLIP


Way = tuple[Callable[[Run], tuple[float, PrivacyEngine]], Callable[[Setting], float]]
WAYS: dict[str, Way] = {
    "straight": (straight, half), "interrupted": (interrupted, half), "resumed": (resumed, apart)
}


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
    moved = sum(
        float((p.detach().double() * d).sum())
        for p, d in zip(parameters, run.direction, strict=True))
    return -moved * engine.mechanism.divisor, engine
