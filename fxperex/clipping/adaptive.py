"""A rule whose bound follows the norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxperex.clipping.rule import Clip, check_positive, is_number
from fxperex.errors import ConfigError


class Adaptive(Clip):
    """`min(1, bound / norm)` with a bound that follows a quantile of the norms (Andrew et al.,
    arXiv 1905.03871).

    The sum is in units of the bound, so its sensitivity is 1 at every step; the engine multiplies
    the noised sum by `bound`. The count of norms below the bound gets noise too, of standard
    deviation `count_noise` (default a twentieth of the expected batch). It is paid for by the same
    noise multiplier. Raises ConfigError.
    """

    def __init__(self, start: float = 1.0, quantile: float = 0.5, rate: float = 0.2,
                 count_noise: float | None = None) -> None:
        check_positive(start, "start")
        check_positive(rate, "rate")
        if count_noise is not None:
            check_positive(count_noise, "count_noise")
        if not is_number(quantile) or not 0 < quantile < 1:
            raise ConfigError("quantile must be a number strictly between 0 and 1; got "
                              f"{quantile!r}")
        self.start, self.quantile, self.rate, self.count_noise = start, quantile, rate, count_noise
        self.bound = float(start)

    def __repr__(self) -> str:
        return (f"Adaptive(start={self.start}, quantile={self.quantile}, rate={self.rate}, "
                f"count_noise={self.count_noise})")

    @property
    def sensitivity(self) -> float:
        return 1.0

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.tensor(self.bound, dtype=torch.float64),)

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return torch.minimum(1.0 / inputs[0], 1.0 / norms)

    def below(self, norms: Tensor) -> float:
        """Returns the sum over examples of 1/2 if its norm is at most the bound, else -1/2. One
        example moves it by 1/2.
        """
        return float((norms <= self.bound).double().sub(0.5).sum())

    def update(self, share: float) -> None:
        """Moves the bound after a step whose noised share of norms below it was `share`."""
        self.bound *= math.exp(-self.rate * (share - self.quantile))
