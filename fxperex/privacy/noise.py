"""Gaussian noise: one stream per (step, tensor), so that no two tensors ever share a number.

Formed in float64 by numpy's Philox. Philox is fast and statistically sound but not a cryptographic generator, and no
floating-point Gaussian is exactly Gaussian: the claim is that of the real-valued mechanism, as with every DP-SGD library.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxperex.errors import ConfigError
from fxperex.privacy.checks import needed, positive, whole
from fxperex.privacy.sampling import stream_key


class GaussianNoise:
    """Noise keyed by the operating system's entropy, or by `seed` for reproducible science. Raises ConfigError."""

    def __init__(self, seed: int | None = None) -> None:
        self._key = stream_key("noise", seed)

    def draw(self, shape: Sequence[int], std: float, step: int, index: int) -> Tensor:
        """Returns noise of `shape` and `std`, float64, on the CPU: the stream of tensor `index` at `step`.

        The same (step, index) gives the same numbers: never use one twice. Raises ConfigError.
        """
        numpy = needed("numpy")
        std, step, index = positive(std, "std"), whole(step, "step"), whole(index, "index")
        # Philox counts up in the two low words; the high words name the stream, 2**128 blocks apart.
        counter = numpy.array([0, 0, index, step], dtype=numpy.uint64)
        stream = numpy.random.Generator(numpy.random.Philox(key=self._key, counter=counter))
        return torch.from_numpy(numpy.asarray(stream.standard_normal(tuple(shape), dtype=numpy.float64))).mul_(std)

    def add_(self, value: Tensor, std: float, step: int, index: int) -> Tensor:
        """Returns `value` after adding noise to it in place, in its own dtype and on its own device.

        The sum is formed in float64 and rounded once, after the noise, where rounding is post-processing.
        Raises ConfigError.
        """
        if not value.dtype.is_floating_point:
            raise ConfigError(f"noise needs real floating point; got {value.dtype}")
        noise = self.draw(value.shape, std, step, index)
        return value.copy_(value.to("cpu", torch.float64) + noise)
