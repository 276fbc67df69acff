"""Who takes part in a step, and what one such step costs.

Poisson: every example joins every step independently, with the same probability. The probability is
an integer threshold over 2^64, compared with 64 random bits. So the accountant's rate is exactly
the rate of the draws; a float32 Bernoulli at 1e-7 takes part 19 % too often. Shuffled batches have
another guarantee: `shuffled.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxperex.errors import ConfigError, SamplingError
from fxperex.privacy.checks import needed, positive, whole_number
from fxperex.privacy.noise.streams import Secret

if TYPE_CHECKING:
    from dp_accounting import DpEvent

UNIT = 2**64


class Sampler(ABC):
    """Draws the rows of every step, and is the accountant's only source for what steps cost.

    size: number of examples. steps: how many are planned. expected_batch: mean rows of a step, the
    constant that sums are divided by. A sampler is an iterator: a second loop continues where the
    first stopped. Raises ConfigError.
    """

    size: int
    steps: int
    expected_batch: float
    secret: Secret
    position: int = 0

    @abstractmethod
    def draw(self, step: int, generation: int = 0) -> Tensor:
        """Returns the rows of `step`: int64, rising, each at most once. Another generation has
        other rows.
        """

    def rows(self, step: int, generation: int = 0) -> Tensor:
        """Returns `draw`, checked: a row that takes part twice would count twice. Raises
        SamplingError.
        """
        drawn = self.draw(step, generation)
        integers = isinstance(drawn, Tensor) and drawn.dtype == torch.int64 and drawn.dim() == 1
        if not integers or bool((drawn[1:] <= drawn[:-1]).any()) \
                or bool(((drawn < 0) | (drawn >= self.size)).any()):
            raise SamplingError(f"{type(self).__name__}.draw must give rows 0 to {self.size - 1} "
                                f"as int64, rising, none more than once; step {step} gave "
                                f"{drawn!r:.99}. A row twice moves the sum twice as far as the "
                                "bound")
        return drawn

    @abstractmethod
    def event(self, noise_multiplier: float) -> DpEvent:
        """Returns what one unit costs; a run is the composition of its units."""

    def units(self, steps: int, first: int = 0) -> int:
        """Returns the number of units in the steps `first` to `first + steps - 1` of a generation:
        one for each step.
        """
        return whole_number(steps, "steps")

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the facts the guarantee rests on, ready for JSON."""

    def relations(self) -> tuple[str, ...]:
        """Returns the neighbouring relations under which `event` holds."""
        return ("add-or-remove", "zero-out", "replace")

    def __repr__(self) -> str:
        facts = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
                          for k, v in self.describe().items() if k != "sampler")
        return f"{type(self).__name__}({self.steps} steps, {facts})"

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        while self.position < self.steps:
            self.position += 1
            yield self.draw(self.position - 1)


class PoissonSampler(Sampler):
    """Every example joins every step independently, with probability `expected_batch / size`.

    A batch may be empty.
    seed, secret: where the randomness comes from; see `Secret`. Raises ConfigError.
    """

    def __init__(self, size: int, expected_batch: float, steps: int, seed: int | None = None, *,
                 secret: Secret | None = None) -> None:
        self.size, self.steps = whole_number(size, "size", 1), whole_number(steps, "steps", 1)
        self.expected_batch = positive(expected_batch, "expected_batch", most=self.size)
        # Scaling a float by 2^64 is exact and floor keeps at most 53 bits, so `rate` equals the
        # threshold exactly.
        self.threshold = math.floor(self.expected_batch / self.size * UNIT)
        if self.threshold == 0:
            raise ConfigError(f"expected_batch {expected_batch!r} of {size} examples is a rate "
                              "below 2^-64; raise it")
        self.secret = secret or Secret(seed)

    @property
    def rate(self) -> float:
        """Probability that one example joins one step, exactly as drawn."""
        return self.threshold / UNIT

    def draw(self, step: int, generation: int = 0) -> Tensor:
        bits = self.secret.streams("sampling", generation).bits(self.size, step)
        # `<= threshold - 1` and not `< threshold`: rate 1 is the threshold 2^64, which 64 bits
        # cannot hold.
        return torch.from_numpy(
            np.flatnonzero(bits <= np.uint64(self.threshold - 1)).astype(np.int64))

    def event(self, noise_multiplier: float) -> DpEvent:
        """Returns the cost of one step: a Gaussian of `noise_multiplier`, Poisson-sampled."""
        events = needed("dp_accounting")
        gaussian = events.GaussianDpEvent(positive(noise_multiplier, "noise_multiplier"))
        return events.PoissonSampledDpEvent(self.rate, gaussian)

    def describe(self) -> dict[str, Any]:
        return {"sampler": "poisson", "examples": self.size, "rate": self.rate,
                "expected batch": self.expected_batch, "amplified by sampling": True}


class TruncatedPoissonSampler(PoissonSampler):
    """A Poisson batch; if it has more than `max_batch` rows, so many of them, chosen uniformly
    (arXiv 2508.15089).

    It costs more than Poisson, since an example that is removed may let another in. The event
    counts that.
    """

    def __init__(self, size: int, expected_batch: float, steps: int, max_batch: int,
                 seed: int | None = None, *, secret: Secret | None = None) -> None:
        super().__init__(size, expected_batch, steps, seed, secret=secret)
        self.max_batch = whole_number(max_batch, "max_batch", 1)
        if self.max_batch < self.expected_batch:
            raise ConfigError(f"max_batch {max_batch} is below the expected batch "
                              f"{expected_batch}; raise it")

    def draw(self, step: int, generation: int = 0) -> Tensor:
        rows = super().draw(step, generation)
        if len(rows) <= self.max_batch:
            return rows
        keys = self.secret.streams("truncation", generation).bits(len(rows), step)
        return rows[np.argsort(keys, kind="stable")[:self.max_batch]].sort().values

    def event(self, noise_multiplier: float) -> DpEvent:
        """Returns the cost of one step, the cut included."""
        sigma = positive(noise_multiplier, "noise_multiplier")
        return needed("dp_accounting").TruncatedSubsampledGaussianDpEvent(
            self.size, self.rate, self.max_batch, sigma)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"sampler": "truncated poisson",
                                     "largest batch": self.max_batch}
