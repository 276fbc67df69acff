"""Clipping rules: from per-example norms to factors, and the sensitivity that noise must cover.

A rule's factors keep `|factor_b grad_b| <= sensitivity` for every example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxperex.errors import ConfigError


class Clip(Protocol):
    """What the step graph and the noise need of a clipping rule."""

    @property
    def sensitivity(self) -> float:
        """Largest norm of one example's share of the sum."""
        ...

    def factors(self, norms: Tensor) -> Tensor:
        """Factors `[B]` for norms `[B]`; rows that do not count are masked by the caller."""
        ...


@dataclass(frozen=True)
class Flat:
    """`min(1, bound / norm)`: DP-SGD's clipping (Abadi et al. 2016). ConfigError unless 0 < bound < inf."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        _positive(self.bound, "clip")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor) -> Tensor:
        return torch.clamp(self.bound / norms, max=1.0)


@dataclass(frozen=True)
class Automatic:
    """`bound / (norm + gamma)`: AUTO-S (Bu et al., arXiv 2206.07136), no threshold to tune."""

    bound: float = 1.0
    gamma: float = 0.01

    def __post_init__(self) -> None:
        _positive(self.bound, "clip")
        _positive(self.gamma, "gamma")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor) -> Tensor:
        return self.bound / (norms + self.gamma)


def as_rule(clip: object) -> Clip:
    """Returns the rule meant by `clip`: a number is a flat bound. Raises ConfigError."""
    if isinstance(clip, bool) or not (isinstance(clip, int | float) or hasattr(clip, "factors")):
        raise ConfigError(f"clip must be a number above 0 or a rule of fxperex.clipping; got {clip!r}")
    return Flat(float(clip)) if isinstance(clip, int | float) else clip  # type: ignore[return-value]


def _positive(value: float, name: str) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a finite number above 0; got {value!r}")
