"""What was asked of a run, and who takes part in its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxperex.clipping import Clip
from fxperex.privacy import PoissonSampler, Sampler, Secret, ShuffledSampler


@dataclass(frozen=True)
class Settings:
    """What was asked of a run.

    rule: from a bound to a clipping rule. per_epoch: steps of an epoch. steps: how many were
    planned, None for any number. collate_fn: is called for one item at a time.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    dataset: Any
    expected_batch: float
    per_epoch: int
    poisson: bool
    rule: Callable[[Any], Clip]
    steps: int | None
    method: str
    seed: int | None
    workers: int = 0
    collate_fn: Callable[[list[Any]], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def relation(self) -> str:
        """The neighbouring relation that the sampling has a guarantee under."""
        return "add-or-remove" if self.poisson else "zero-out"

    def sampler(self, size: int, steps: int, seed: int | None) -> Sampler:
        """Returns who takes part in `steps` steps. Raises ConfigError."""
        secret = Secret(seed)
        if self.poisson:
            return PoissonSampler(size, self.expected_batch, steps, secret=secret)
        return ShuffledSampler(size, int(self.expected_batch), steps, secret=secret)
