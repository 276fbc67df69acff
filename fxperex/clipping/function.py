"""A rule that is any function of the norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxperex.clipping.rule import Clip, check_positive
from fxperex.errors import ConfigError

# Norms that a function is tried on.
PROBES = (0.0, 1e-30, 1e-3, 0.5, 1.0, 2.0, 1e3, 1e30)


@dataclass(frozen=True)
class Function(Clip):
    """`call(norm) -> factor`: any function of one example's norm, a scalar tensor.

    bound: what the function declares; tried here on norms from 0 to 1e30, and enforced in every
    step. Raises ConfigError.
    """

    call: Callable[[Tensor], Tensor]
    bound: float

    def __post_init__(self) -> None:
        check_positive(self.bound, "bound")
        norms = torch.tensor(PROBES, dtype=torch.float64)
        try:
            factors = torch.func.vmap(self.call)(norms)
        except Exception as e:  # whatever a user's function may raise
            raise ConfigError("the clip function must map one norm (a scalar tensor) to one "
                              "factor by torch operations without branches on its value: "
                              f"{type(e).__name__}: {e}") from e
        usable = factors.shape == norms.shape and torch.isfinite(factors * norms).all()
        if not usable or (factors < 0).any():
            raise ConfigError("the clip function must give one factor, finite and not negative, "
                              f"for every norm; for norms {list(PROBES)} it gave "
                              f"{factors.tolist()}")
        over = factors * norms > self.bound * (1 + 1e-12)
        if over.any():
            place = int(over.nonzero()[0])
            norm, clipped = PROBES[place], float(factors[place]) * PROBES[place]
            raise ConfigError(f"the clip function lets a norm of {norm} through at {clipped}, "
                              f"above its declared bound {self.bound}")

    def __repr__(self) -> str:
        return (f"Function({getattr(self.call, '__qualname__', type(self.call).__name__)}, "
                f"bound={self.bound})")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return self.call(norms[0]).reshape(1)
