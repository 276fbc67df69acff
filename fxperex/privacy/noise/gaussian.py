"""Noise on the clipped sum: float64, one stream per (generation, step, tensor), never used twice.

Why float64: a float32 normal has no tail beyond 5.77 standard deviations; Box-Muller on 64 random
bits reaches 9.4. Sum and noise are added and divided in float64 and rounded once, at the end: else
half of a bfloat16 sum's noise would vanish in rounding. The noise of an element depends only on
(secret, generation, step, tensor, place in it). So any part can be drawn anywhere: threads share a
step's tensors in parts that fit a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxperex.errors import PrivacyError
from fxperex.privacy.noise.discrete import BLOCK, Integers, discrete_gaussian
from fxperex.privacy.noise.mechanism import Mechanism
from fxperex.privacy.noise.normal import CHUNK, Normals, cut, gaussian, on_host
from fxperex.privacy.noise.streams import Secret, Streams
from fxperex.privacy.noise.workers import share
from fxperex.ranks.totals import Part

# Stream number of the adaptive rule's count; tensors are numbered from 0.
COUNT = 2**32 - 1


class Noise:
    """The noise of one mechanism and one secret. Refuses to give the same noise twice."""

    def __init__(self, mechanism: Mechanism, secret: Secret) -> None:
        self.mechanism, self.secret = mechanism, secret
        self._last = {"sum": (-1, -1), "count": (-1, -1)}

    def release(self, sums: Sequence[Tensor], step: int, generation: int = 0) -> list[Tensor]:
        """Returns `(sum + noise) / divisor` for each of `sums`: the private mean, float64, on its
        device.

        Raises PrivacyError unless (generation, step) is above every earlier one: noise that is used
        twice can be subtracted.
        """
        parts = [Part(item, 0, total) for item, total in enumerate(sums)]
        return self.release_parts(parts, step, generation)

    def release_parts(self, held: Sequence[Part], step: int, generation: int = 0) -> list[Tensor]:
        """Returns the same for parts of the sums: bit for bit what `release` has at their places.

        Raises as `release`.
        """
        streams = self._streams("sum", step, generation)
        means = [torch.empty(part.values.shape, dtype=torch.float64, device=part.values.device)
                 for part in held]
        flat = [(item, start, mean.view(-1), total.detach().reshape(-1))
                for mean, (item, start, total) in zip(means, held, strict=True)]
        size = BLOCK if self.mechanism.grid else CHUNK
        parts = [(i, *part) for i, (_, _, _, total) in enumerate(flat) if on_host(total.device)
                 for part in cut(total.numel(), size)]

        def worker() -> Callable[[tuple[int, int, int]], None]:
            draw = self._drawer(streams, step, max(b - a for _, a, b in parts))

            def release(part: tuple[int, int, int]) -> None:
                i, a, b = part
                item, start, mean, total = flat[i]
                mean[a:b] = self._noised(draw(item, start + a, start + b), total[a:b])

            return release

        share(parts, worker)
        for item, start, mean, total in flat:
            if not on_host(total.device):
                mean.copy_(self._noised(self._drawn(total, streams, step, item, start), total))
        return means

    def count(self, centred: float, step: int, generation: int = 0) -> float:
        """Returns the noised share of an adaptive rule's centred count, about 0 to 1. Raises as
        `release`.
        """
        z = gaussian(self._streams("count", step, generation), 1, step, COUNT)
        return (centred + self.mechanism.count_std * float(z)) / self.mechanism.divisor + 0.5

    def _drawer(self, streams: Streams, step: int, size: int) -> Callable[[int, int, int], Tensor]:
        """Returns a function, for one thread: it draws numbers `a` to `b` of tensor `item` on the
        CPU, at most `size`.
        """
        if self.mechanism.grid:
            return Integers(self.mechanism.std / self.mechanism.grid, streams, step).draw
        return Normals(streams, step, size).draw

    def _drawn(self, total: Tensor, streams: Streams, step: int, item: int, start: int) -> Tensor:
        """Returns the numbers of tensor `item` from `start` on, on the device of `total`."""
        count = total.numel()
        if self.mechanism.grid:
            sigma = self.mechanism.std / self.mechanism.grid
            return discrete_gaussian(sigma, count, streams, step, item, start).to(total.device)
        return gaussian(streams, count, step, item, total.device, start)

    def _noised(self, noise: Tensor, total: Tensor) -> Tensor:
        """Turns standard normals, or integers on the grid, into `(total + noise) / divisor`."""
        grid = self.mechanism.grid
        if grid:
            # Sum and noise are whole multiples of a power of two: float64 adds them exactly below
            # 2^53.
            noise.add_(total.double().div(grid).round_()).mul_(grid)
        else:
            noise.mul_(self.mechanism.std).add_(total)
        return noise.div_(self.mechanism.divisor)

    def _streams(self, what: str, step: int, generation: int) -> Streams:
        if (generation, step) <= self._last[what]:
            raise PrivacyError(f"noise of step {step} was asked for after step "
                               f"{self._last[what][1]}; noise is never used twice, so number the "
                               "steps upwards and make a new engine for a new run")
        self._last[what] = (generation, step)
        return self.secret.streams("noise", generation)
