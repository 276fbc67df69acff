"""The samplers of noise layout 1, as they were: one thread, whole arrays. For `bench_noise.py` to
compare with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fxperex.privacy.noise.streams import Streams

WORDS = 5  # 64-bit words per candidate


def gaussian(streams: Streams, count: int) -> Tensor:
    """Returns `count` standard normals, float64."""
    if not streams.secure:
        draw = np.random.Generator(streams.philox(0, 0)).standard_normal(count)
        return torch.from_numpy(draw)
    half = (count + 1) // 2
    words = torch.from_numpy(streams.bits(2 * half, 0, 0).astype(np.int64))
    upper, lower = (words >> 32 & 0xFFFFFFFF).double(), (words & 0xFFFFFFFF).double()
    unit = upper.mul_(2.0**-32).add_(lower.mul_(2.0**-64))
    radius = unit[:half].add(2.0**-65).log_().mul_(-2).sqrt_()
    angle = unit[half:].mul(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def discrete_gaussian(sigma: float, count: int, streams: Streams) -> Tensor:
    """Returns `count` integers as float64, by rejection from the discrete Laplace."""
    accepted: list[np.ndarray] = []
    have, offset = 0, 0
    words = np.empty(0, np.uint64)
    while have < count:
        candidates = 64 + 3 * (count - have)
        needed = offset + WORDS * candidates
        if needed > len(words):
            words = streams.bits(needed, 0, 0)
        accepted.append(_accepted(sigma, words[offset:needed].reshape(WORDS, candidates)))
        offset, have = needed, have + len(accepted[-1])
    return torch.from_numpy(np.concatenate(accepted)[:count])


def _accepted(sigma: float, words: np.ndarray) -> np.ndarray:
    scale = math.floor(sigma) + 1
    low = (words[0] >> np.uint64(64 - scale.bit_length())).astype(np.float64)
    unit = [w * 2.0**-64 + 2.0**-65 for w in words]
    keep = (low < scale) & (unit[1] < np.exp(-low / scale))
    size = low + scale * np.floor(-np.log(unit[2]))
    negative = (words[3] & np.uint64(1)).astype(bool)
    keep &= ~(negative & (size == 0))
    keep &= unit[4] < np.exp(-((size - sigma**2 / scale) ** 2) / (2 * sigma**2))
    return np.where(negative, -size, size)[keep]
