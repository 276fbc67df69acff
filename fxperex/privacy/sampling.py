"""Poisson sampling: every example joins every step on its own, with one known probability.

The probability is an integer threshold over 2^64, compared with 64 random bits, so that the rate the accountant
is told is the rate that is drawn: a float32 Bernoulli at 1e-7 takes part 19 % too often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fxperex.errors import ConfigError
from fxperex.privacy.accountant import sampled_gaussian
from fxperex.privacy.streams import Streams

if TYPE_CHECKING:
    from dp_accounting import DpEvent

UNIT = 2**64


class PoissonSampler:
    """Yields `steps` times the rows of one step: int64 `[rows]` in rising order, possibly empty.

    size: number of examples; expected_batch: mean number of rows per step, at most `size`; steps: how many steps
    there will be. seed: see `Streams`; None is right for anything but experiments.
    A sampler is used up once: iterating again goes on where the last loop stopped. Raises ConfigError.
    """

    def __init__(self, size: int, expected_batch: float, steps: int, seed: int | None = None) -> None:
        self.size, self.steps = whole(size, "size"), whole(steps, "steps")
        self.expected_batch = _expected(expected_batch, self.size)
        # Scaling a float by 2^64 is exact and floor keeps at most 53 bits, so `rate` equals the threshold exactly.
        self.threshold = math.floor(self.expected_batch / self.size * UNIT)
        if self.threshold == 0:
            raise ConfigError(f"expected_batch {expected_batch!r} of {size} examples is a rate below 2^-64; raise it")
        self.taken = 0
        self._streams = Streams("sampling", seed)

    @property
    def rate(self) -> float:
        """Probability that one example joins one step, exactly as drawn."""
        return self.threshold / UNIT

    def event(self, noise_multiplier: float) -> DpEvent:
        """Returns what one step costs: a Gaussian of `noise_multiplier`, Poisson sampled at `rate`."""
        return sampled_gaussian(self.rate, noise_multiplier)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        while self.taken < self.steps:
            yield self._draw()

    def _draw(self) -> Tensor:
        bits = self._streams.at(self.taken).random_raw(self.size)
        self.taken += 1
        # `<= threshold - 1` and not `< threshold`: rate 1 is the threshold 2^64, which 64 bits cannot hold.
        return torch.from_numpy(np.flatnonzero(bits <= np.uint64(self.threshold - 1)).astype(np.int64))


def whole(value: object, name: str) -> int:
    """Returns `value` if it is a whole number of at least 1, else raises ConfigError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1; got {value!r}")
    return value


def _expected(value: object, size: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= size:
        raise ConfigError(f"expected_batch must be a number above 0 and at most the {size} examples; got {value!r}")
    return float(value)
