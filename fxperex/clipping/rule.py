"""What a clipping rule is: from one example's gradient norms to its factors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxperex.config import SHORTEST
from fxperex.errors import ConfigError

# Factors stay far inside float32, in which sums are formed; a smaller factor is always allowed.
LARGEST_FACTOR = 2.0**96


class Clip(ABC):
    """A clipping rule. Subclass it for your own: `sensitivity` and `factors` are enough."""

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """Largest L2 norm of one example's share of the sum, over all its groups together."""

    @abstractmethod
    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        """Factors `[K]` (or one for all) of ONE example with group norms `[K]`, float64."""

    def groups(self, names: Sequence[str]) -> tuple[int, ...]:
        """Returns the group, 0 to K-1, of every parameter of `names`. Raises ConfigError."""
        return (0,) * len(names)

    def inputs(self) -> tuple[Tensor, ...]:
        """Returns what the step graph takes afresh at every step, and hands to `factors`."""
        return ()

    def apply(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        """Returns factors `[B, K]` for norms `[B, K]`, held to the declared sensitivity."""
        factors = torch.func.vmap(lambda own: self.factors(own, *inputs).broadcast_to(own.shape))(
            norms)
        factors = torch.nan_to_num(factors.to(norms.dtype), nan=0.0).clamp(0.0, LARGEST_FACTOR)
        share = (factors * norms.clamp(min=SHORTEST)).square().sum(1, keepdim=True).sqrt()
        return factors * (self.sensitivity / share).clamp(max=1.0)


def check_positive(value: Any, name: str) -> None:
    """Raises ConfigError unless `value` is a finite number above 0."""
    if not (is_number(value) and value > 0):
        raise ConfigError(f"{name} must be a finite number above 0; got {value!r}")


def is_number(value: Any) -> bool:
    """True for a finite int or float; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
