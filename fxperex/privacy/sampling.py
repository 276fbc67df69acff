"""Poisson sampling: the batches that the account of a subsampled Gaussian assumes, and nothing near them.

Every example joins every batch independently, with a probability that is exactly `threshold / 2**64`; the event that
the accountant composes is taken from here, so that what is sampled and what is accounted cannot drift apart.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fxperex.errors import ConfigError
from fxperex.privacy.checks import needed, positive, whole

RANGE = 2**64


class PoissonSampler:
    """Batches of row numbers of a data set of `size` examples, `expected_batch` of them on average.

    The key comes from the operating system unless `seed` is given: a seed is for reproducible science, and whoever
    knows it knows who was sampled. Iterating always draws afresh; two passes never repeat a stream.
    Raises ConfigError for numbers that mean nothing, or without numpy.
    """

    def __init__(self, size: int, expected_batch: float, steps: int, seed: int | None = None) -> None:
        self.size = whole(size, "size", 1)
        self.expected_batch = positive(expected_batch, "expected_batch")
        self.steps = whole(steps, "steps")
        if self.expected_batch > self.size:
            raise ConfigError(f"expected_batch {expected_batch} is more than the {size} examples there are")
        # A double times 2**64 is exact and its floor keeps at most 53 bits: `rate` is the probability, not near it.
        self.threshold = int(self.expected_batch / self.size * RANGE)
        if self.threshold < 1:
            raise ConfigError(f"expected_batch / size = {expected_batch} / {size} is below 2**-64")
        numpy = needed("numpy")
        self._draws = numpy.random.Generator(numpy.random.Philox(key=stream_key("sampling", seed)))

    @property
    def rate(self) -> float:
        """Probability q of joining a batch, exactly as realised."""
        return self.threshold / RANGE

    def event(self, noise_multiplier: float) -> Any:
        """Returns the dp_accounting event of ONE step whose noise has `noise_multiplier`. Raises ConfigError."""
        dp = needed("dp_accounting")
        sigma = positive(noise_multiplier, "noise_multiplier")
        return dp.PoissonSampledDpEvent(self.rate, dp.GaussianDpEvent(sigma))

    def draw(self) -> Tensor:
        """Returns the row numbers of one batch, int64, ascending, possibly none."""
        numpy = needed("numpy")
        words = self._draws.integers(0, RANGE, self.size, dtype=numpy.uint64)
        # `<= threshold - 1`, because threshold itself is 2**64 when everyone always joins.
        return torch.from_numpy(numpy.flatnonzero(words <= numpy.uint64(self.threshold - 1)).astype(numpy.int64))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield self.draw()


def stream_key(purpose: str, seed: int | None) -> int:
    """Returns a 128-bit Philox key: the operating system's, or that of (`purpose`, `seed`). Raises ConfigError.

    `purpose` keeps sampling and noise of one seed on unrelated streams.
    """
    if seed is None:
        return secrets.randbits(128)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed must be a whole number, or None for the operating system's entropy; got {seed!r}")
    return int.from_bytes(hashlib.sha256(f"fxperex {purpose} {seed}".encode()).digest()[:16], "little")
