"""Many canaries, one run: a coin decides whether each is in, and the attack guesses the coins.

Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), white-box: a canary's score is `sum_t <update_t,
its gradient at step t, of unit length>`. A fixed number of canaries is guessed: those of the
highest scores are in, those of the lowest are out. The attack abstains from all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxperex.errors import ConfigError
from fxperex.privacy.audit import bounds
from fxperex.privacy.audit.canaries import HUGE
from fxperex.privacy.checks import whole_number
from fxperex.privacy.engine import PrivacyEngine
from fxperex.privacy.noise.streams import Secret
from fxperex.runtime.module import PerExampleModule
from fxperex.transform import transform

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class OneRun:
    """The claimed epsilon of the run, and its lower bound by `correct` of `guessed` coins."""

    canaries: int
    guessed: int
    correct: int
    claimed: float
    lower: float
    confidence: float
    present: np.ndarray
    absent: np.ndarray

    @property
    def holds(self) -> bool:
        return self.lower <= self.claimed


def one_run(private: PerExampleModule, optimizer: torch.optim.Optimizer,
            dataset: tuple[Tensor, ...], canaries: tuple[Tensor, ...], *,
            guessed: int | None = None, confidence: float = bounds.CONFIDENCE,
            seed: int | None = None, rate: float = 1.0, epochs: float = 1.0, delta: float = 1e-5,
            report: Report = lambda done, total: None, **settings: Any) -> OneRun:
    """Returns the OneRun of training on `dataset` and about half of `canaries`. Raises
    FxperexError.

    guessed: number of coins (default a fifth). rate: the expected batch as a share of the examples.
    settings: further arguments of PrivacyEngine. This trains the model.
    """
    count = len(canaries[0])
    guessed = whole_number(count // 5 if guessed is None else guessed, "guessed", 2)
    if guessed > count:
        raise ConfigError(f"{guessed} guesses for {count} canaries; give at most as many")
    bits = Secret(seed).streams("audit").bits(count, 0) >> np.uint64(63)
    coins = torch.from_numpy(bits.astype(np.int64)).bool()
    data = tuple(torch.cat([x, c[coins]]) for x, c in zip(dataset, canaries, strict=True))
    with PrivacyEngine(private, optimizer, data, expected_batch=rate * len(data[0]), epochs=epochs,
                       delta=delta, seed=seed, **settings) as engine:
        scores = _scores(engine, canaries, report)
        claimed = engine.epsilon()
    order, half = scores.argsort(descending=True), guessed // 2
    correct = int(coins[order[:half]].sum() + (~coins[order[len(order) - half:]]).sum())
    lower = bounds.guesses(correct, 2 * half, count, delta, confidence)
    return OneRun(count, 2 * half, correct, claimed, lower, confidence, scores[coins].numpy(),
                  scores[~coins].numpy())


def dirac(canaries: int,
          rows: int = 128) -> tuple[PerExampleModule, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Returns (step, public rows, canaries) of a linear model: each canary's gradient is in one
    parameter, which is its own.
    """
    model = nn.Linear(canaries, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    public = (torch.ones(1, canaries), torch.ones(1))
    private = transform(model, public, forward=lambda m, x, y: m(x).squeeze(1) * y, clip=1.0,
                        physical_batch=rows, backend="eager")
    return private, public, (HUGE * torch.eye(canaries), torch.ones(canaries))


def _scores(engine: PrivacyEngine, canaries: tuple[Tensor, ...], report: Report) -> Tensor:
    parameters = list(engine.private.parameters.values())
    total = torch.zeros(len(canaries[0]), dtype=torch.float64)
    steps = len(engine)
    for step in range(steps):
        gradients = engine.private.gradients(*canaries).values()
        grads = [g.detach().double().flatten(1) for g in gradients]
        lengths = torch.stack([g.square().sum(1) for g in grads]).sum(0).sqrt().clamp(min=1e-30)
        before = [p.detach().double().clone() for p in parameters]
        engine.step()
        for p, old, g in zip(parameters, before, grads, strict=True):
            total += g @ (old - p.detach()).flatten() / lengths
        report(step + 1, steps)
    return total * engine.mechanism.divisor
