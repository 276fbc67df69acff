"""The discrete Gaussian on the integers, by rejection from the discrete Laplace (Canonne, Kamath, Steinke 2020).

Against floating-point attacks (Mironov 2012): sum and noise live on one integer grid, so the set of values that can
come out does not depend on the data. Coins compare 64 random bits with a probability rounded to float64: each is
right to a relative 2^-50, which is all that keeps this from being exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fxperex.errors import ConfigError
from fxperex.privacy.streams import Streams

LARGEST = 2.0**48  # standard deviation at which sums of it are still exact in float64
WORDS = 5  # 64-bit words per candidate


def discrete_gaussian(sigma: float, count: int, streams: Streams, step: int, item: int = 0) -> Tensor:
    """Returns `count` integers as float64 with P(x) proportional to exp(-x^2 / 2 sigma^2). Raises ConfigError."""
    if not 1 <= sigma <= LARGEST:
        raise ConfigError(f"a grid on which the noise has standard deviation {sigma:g} is of no use; it must be 1 to 2^48")
    found: list[np.ndarray] = []
    have, offset = 0, 0
    # Over half of the candidates are taken; one long stream, read on as long as needed.
    words = np.empty(0, np.uint64)
    while have < count:
        candidates = 64 + 3 * (count - have)
        needed = offset + WORDS * candidates
        if needed > len(words):
            words = streams.bits(needed, step, item)
        taken = _candidates(sigma, words[offset:needed].reshape(WORDS, candidates))
        offset, have = needed, have + len(taken)
        found.append(taken)
    return torch.from_numpy(np.concatenate(found)[:count])


def _candidates(sigma: float, words: np.ndarray) -> np.ndarray:
    """The accepted ones of one row of candidates."""
    scale = math.floor(sigma) + 1
    # Uniform below `scale` by taking just enough bits and rejecting what is too large: exact.
    low = (words[0] >> np.uint64(64 - scale.bit_length())).astype(np.float64)
    unit = [w * 2.0**-64 + 2.0**-65 for w in words]
    keep = (low < scale) & (unit[1] < np.exp(-low / scale))
    # P(high >= v) = exp(-v), by inversion.
    size = low + scale * np.floor(-np.log(unit[2]))
    negative = (words[3] & np.uint64(1)).astype(bool)
    keep &= ~(negative & (size == 0))
    keep &= unit[4] < np.exp(-((size - sigma**2 / scale) ** 2) / (2 * sigma**2))
    return np.where(negative, -size, size)[keep]
