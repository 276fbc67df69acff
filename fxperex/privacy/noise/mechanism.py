"""The Gaussian mechanism of one run as a frozen value: the clipping, the sensitivity, the noise.

The noise's standard deviation comes from the sensitivity that is computed here, and from nothing
else in the library. `bound` is what one example can add to the sum as it is really computed,
`C (1 + 2^-20)` (see `fxperex.config`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fxperex.clipping import Adaptive, Clip, as_rule
from fxperex.config import SLACK
from fxperex.errors import ConfigError, PrivacyError
from fxperex.privacy.accountant import RELATIONS
from fxperex.privacy.checks import one_of, positive, whole_number

NOISES = ("gaussian", "discrete")
# The integer grid is this much finer than the bound over sqrt(dimension): rounding adds at most
# 2^-20 of the bound.
GRID_BITS = 20
# Default noise of the adaptive count query, as in Andrew et al.: a twentieth of the expected batch.
COUNT_SHARE = 20


@dataclass(frozen=True)
class Mechanism:
    """clip: the rule. noise_multiplier: the standard deviation over `bound`, for the accountant.

    relation: "add-or-remove", "zero-out" or "replace" one unit. divisor: the public constant that
    sums are divided by. dimension: number of released coordinates. noise: "gaussian" (float64) or
    "discrete" (integers on a grid). Raises ConfigError.
    """

    clip: Clip
    noise_multiplier: float
    relation: str
    divisor: float
    dimension: int
    noise: str = "gaussian"
    bound: float = field(init=False)

    def __post_init__(self) -> None:
        as_rule(self.clip)
        positive(self.noise_multiplier, "noise_multiplier")
        if callable(self.divisor):
            raise ConfigError("divisor must be a number known beforehand, not a function: "
                              "dividing by the realised batch size releases it")
        positive(self.divisor, "divisor")
        whole_number(self.dimension, "dimension", 1)
        one_of(self.relation, "relation", RELATIONS)
        one_of(self.noise, "noise", NOISES)
        object.__setattr__(self, "bound",
                           positive(self.clip.sensitivity, "clip.sensitivity") * (1 + SLACK))
        if self.adaptive is not None and 2 * self.count_std <= self.noise_multiplier:
            raise ConfigError(f"count_noise {self.count_std:g} must be above half the noise "
                              f"multiplier {self.noise_multiplier:g}, or nothing is left for the "
                              "gradient; raise it")

    @property
    def holds(self) -> bool:
        """True while the rule has the sensitivity that the noise was made for."""
        return self.bound == self.clip.sensitivity * (1 + SLACK)

    def check(self, clip: Clip) -> None:
        """Raises PrivacyError unless `clip` is the rule, with the bound that the noise is for."""
        if clip is not self.clip or not self.holds:
            raise PrivacyError(f"clip.sensitivity changed to {clip.sensitivity} since the engine "
                               f"was made; the noise is for a bound of {self.bound}. Make a new "
                               "engine")

    @property
    def adaptive(self) -> Adaptive | None:
        return self.clip if isinstance(self.clip, Adaptive) else None

    @property
    def sensitivity(self) -> float:
        """Largest L2 distance of two sums whose data differ in one unit under the relation."""
        return self.bound * (2 if self.relation == "replace" else 1)

    @property
    def std(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum."""
        return self.gradient_multiplier * self.bound * (1 + (2.0**-GRID_BITS if self.grid else 0.0))

    @property
    def gradient_multiplier(self) -> float:
        """The gradient's share of the noise multiplier: all of it, unless a count query takes some.

        Two Gaussians of multipliers a and b are one of `(a^-2 + b^-2)^(-1/2)`; the count moves by
        1/2 (Andrew et al.).
        """
        if self.adaptive is None:
            return self.noise_multiplier
        return (self.noise_multiplier**-2 - (2 * self.count_std) ** -2) ** -0.5

    @property
    def count_std(self) -> float:
        """Standard deviation of the noise on the adaptive rule's count; 0 without one."""
        if self.adaptive is None:
            return 0.0
        return self.adaptive.count_noise or max(self.divisor / COUNT_SHARE, self.noise_multiplier)

    @property
    def grid(self) -> float:
        """Spacing of the integer grid, a power of two; 0 without one."""
        if self.noise != "discrete":
            return 0.0
        return 2.0 ** math.floor(math.log2(self.bound / math.sqrt(self.dimension)) - GRID_BITS)

    def describe(self) -> dict[str, Any]:
        """Returns the facts the guarantee rests on, ready for JSON."""
        facts = {"clip": repr(self.clip), "relation": self.relation, "divisor": self.divisor,
                 "dimension": self.dimension, "bound on one unit": self.bound,
                 "sensitivity": self.sensitivity, "noise": self.noise,
                 "noise multiplier": self.noise_multiplier, "standard deviation": self.std}
        if self.grid:
            facts["grid"] = self.grid
        if self.adaptive:
            facts["count noise"] = self.count_std
        return facts
