"""Noise on the clipped sum: float64, one stream per (generation, step, tensor), each used once ever.

Float64, because a float32 normal has no tail beyond 5.77 standard deviations: Box-Muller on 64 random bits reaches
9.4. Added and divided in float64 and rounded once at the end: half a bfloat16 sum's noise would vanish in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxperex.errors import PrivacyError
from fxperex.privacy.discrete import discrete_gaussian
from fxperex.privacy.mechanism import Mechanism
from fxperex.privacy.streams import Secret, Streams

# Stream number of the adaptive rule's count; tensors are numbered from 0.
COUNT = 2**32 - 1
HALF_STEP = 2.0**-65
HALF_WORD = 0xFFFFFFFF
CPU = torch.device("cpu")


def gaussian(streams: Streams, count: int, step: int, item: int = 0, device: torch.device = CPU) -> Tensor:
    """Returns `count` standard normals, float64 on `device`, of the stream (step, item)."""
    if not streams.secure:
        return torch.from_numpy(np.random.Generator(streams.philox(step, item)).standard_normal(count)).to(device)
    half = (count + 1) // 2
    words = streams.words(2 * half, step, item, device)
    # The unsigned word over 2^64, rounded once: its halves are exact in float64.
    unit = (words >> 32 & HALF_WORD).double().mul_(2.0**-32).add_((words & HALF_WORD).double().mul_(2.0**-64))
    # Never 0, so the logarithm is finite; the smallest is 2^-65, a radius of 9.5.
    radius = unit[:half].add(HALF_STEP).log_().mul_(-2).sqrt_()
    angle = unit[half:].mul(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


class Noise:
    """The noise of one mechanism and one secret. Refuses to give the same noise twice."""

    def __init__(self, mechanism: Mechanism, secret: Secret) -> None:
        self.mechanism, self.secret = mechanism, secret
        self._last = {"sum": (-1, -1), "count": (-1, -1)}

    def release(self, sums: Sequence[Tensor], step: int, generation: int = 0) -> list[Tensor]:
        """Returns `(sum + noise) / divisor` for each of `sums`: the private mean, float64, on its device.

        Raises PrivacyError unless (generation, step) is above every earlier one: the same noise twice can be subtracted.
        """
        streams = self._streams("sum", step, generation)
        return [self._noised(total, streams, step, item) for item, total in enumerate(sums)]

    def count(self, centred: float, step: int, generation: int = 0) -> float:
        """Returns the noised share of an adaptive rule's centred count, about 0 to 1. Raises as `release`."""
        z = gaussian(self._streams("count", step, generation), 1, step, COUNT)
        return (centred + self.mechanism.count_std * float(z)) / self.mechanism.divisor + 0.5

    def _noised(self, total: Tensor, streams: Streams, step: int, item: int) -> Tensor:
        grid = self.mechanism.grid
        if grid:
            noise = discrete_gaussian(self.mechanism.std / grid, total.numel(), streams, step, item)
            # Sum and noise are whole multiples of a power of two: float64 adds them exactly below 2^53.
            noised = noise.to(total.device).reshape(total.shape).add_(total.double().div(grid).round_()).mul_(grid)
        else:
            draw = gaussian(streams, total.numel(), step, item, total.device).mul_(self.mechanism.std)
            noised = draw.reshape(total.shape).add_(total)
        return noised.div_(self.mechanism.divisor)

    def _streams(self, what: str, step: int, generation: int) -> Streams:
        if (generation, step) <= self._last[what]:
            raise PrivacyError(f"noise of step {step} was asked for after step {self._last[what][1]}; noise is never used "
                               "twice, so number the steps upwards and make a new engine for a new run")
        self._last[what] = (generation, step)
        return self.secret.streams("noise", generation)
