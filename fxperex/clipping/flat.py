"""Rules of one norm: that of all parameters together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxperex.clipping.rule import Clip, check_positive, is_number
from fxperex.config import SHORTEST
from fxperex.errors import ConfigError


@dataclass(frozen=True)
class Flat(Clip):
    """`min(1, bound / norm)`: the clipping of DP-SGD (Abadi et al. 2016). Raises ConfigError."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.bound, "clip")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return torch.clamp(self.bound / norms, max=1.0)


@dataclass(frozen=True)
class Automatic(Clip):
    """`bound / (norm + gamma)`: AUTO-S (Bu et al., arXiv 2206.07136), no threshold to tune."""

    bound: float = 1.0
    gamma: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self.bound, "clip")
        check_positive(self.gamma, "gamma")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return self.bound / (norms + self.gamma)


@dataclass(frozen=True)
class Normalised(Clip):
    """`bound / max(norm, floor)`: every gradient gets the length `bound` (Das et al., arXiv
    2106.07094).

    floor: a gradient below it stays shorter. It must not be below SHORTEST: squares of float32
    underflow there, so a norm would be read too low. Raises ConfigError.
    """

    bound: float = 1.0
    floor: float = SHORTEST

    def __post_init__(self) -> None:
        check_positive(self.bound, "clip")
        if not is_number(self.floor) or self.floor < SHORTEST:
            raise ConfigError(f"floor must be a finite number of at least {SHORTEST}; got "
                              f"{self.floor!r}")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return self.bound / norms.clamp(min=self.floor)


def as_rule(clip: object) -> Clip:
    """Returns the rule that `clip` means: a number is the bound of Flat. Raises ConfigError."""
    if isinstance(clip, Clip):
        check_positive(clip.sensitivity, "clip.sensitivity")
        return clip
    if isinstance(clip, bool) or not isinstance(clip, int | float):
        raise ConfigError("clip must be a number above 0 or a rule of fxperex.clipping; got "
                          f"{clip!r}")
    return Flat(float(clip))
