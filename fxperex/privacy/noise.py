"""The Gaussian mechanism on the clipped sum: float64 noise on the CPU, one stream per (step, tensor).

Float64, because a float32 normal has no tail beyond 5.77 standard deviations. Floating-point side channels
(the spacing of the released numbers, timing) are not covered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxperex.errors import PrivacyError
from fxperex.privacy.accountant import positive
from fxperex.privacy.streams import Streams


class GaussianNoise:
    """Noise of standard deviation `multiplier * sensitivity`, in the units of the sum of clipped gradients.

    multiplier: the accountant's noise multiplier; seed: see `Streams`. Raises ConfigError.
    """

    def __init__(self, multiplier: float, seed: int | None = None) -> None:
        self.multiplier = positive(multiplier, "noise_multiplier")
        self._streams = Streams("noise", seed)
        self._last = -1

    def std(self, sensitivity: float) -> float:
        """Returns the standard deviation for a sum to which one example adds at most `sensitivity` (L2)."""
        return self.multiplier * positive(sensitivity, "sensitivity")

    def release(self, sums: Sequence[Tensor], sensitivity: float, step: int, divisor: float = 1.0) -> list[Tensor]:
        """Returns `(sum + noise) / divisor` for each of `sums`, in its dtype and on its device.

        Added and divided in float64 and rounded once at the end: half a bfloat16 sum's noise would vanish in rounding.
        Raises PrivacyError if `step` is not above every earlier step: the same noise twice can be subtracted.
        """
        if step <= self._last:
            raise PrivacyError(f"noise of step {step} was asked for after step {self._last}; noise is never used twice, "
                               "so number the steps upwards and make a new engine for a new run")
        std, self._last = self.std(sensitivity), step
        return [self._noised(total, std, step, item, divisor) for item, total in enumerate(sums)]

    def _noised(self, total: Tensor, std: float, step: int, item: int, divisor: float) -> Tensor:
        draw = np.random.Generator(self._streams.at(step, item)).standard_normal(tuple(total.shape))
        noise = torch.as_tensor(draw, dtype=torch.float64).mul_(std).to(total.device)
        return noise.add_(total).div_(divisor).to(total.dtype)
