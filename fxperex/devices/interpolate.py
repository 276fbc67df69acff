"""A kernel's rate between the shapes that were measured: Gaussian process regression in logs.

log(rate) is a linear trend in the logs of the sizes plus a smooth field around it (covariance of
Matern's class, 3/2). Near a sample it is close to the measured rate, far from all it follows the
trend. Outside the measured range of a size it is constant.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): 2.7 (trend), 4.17 (Matern),
5.12 (leaving out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LENGTH = 3.0  # of the field: natural logs of a size, a factor of 20
NOISE = 0.1  # relative error of one measurement
SLOPES = 0.1  # prior variance of the trend's slopes, per spread of a size's log


@dataclass(frozen=True)
class Surface:
    """`shapes [N][K]`, `rates [N]` of one kernel and dtype."""

    shapes: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...]

    def rate(self, shape: Sequence[float]) -> float:
        """Returns the predicted amount per second at `shape`, remembered: layers repeat."""
        key = tuple(shape)
        if key not in self._known:
            low, high = self._range
            covariance = self._covariance(_logs([shape]).clamp(low, high))
            self._known[key] = math.exp(self._mean + float(covariance @ self._weights))
        return self._known[key]

    @property
    def typical(self) -> float:
        """The geometric mean of the rates."""
        return math.exp(self._mean)

    def leave_one_out(self) -> float:
        """Returns the median relative error of predicting each sample from the others; 0 for fewer
        than 4.
        """
        if len(self.shapes) < 4:
            return 0.0
        off = (self._weights / self._precision.diagonal()).abs()
        return math.expm1(float(off.sort().values[len(off) // 2]))

    @cached_property
    def _known(self) -> dict[tuple[float, ...], float]:
        return {}

    @cached_property
    def _points(self) -> Tensor:
        return _logs(self.shapes)

    @cached_property
    def _range(self) -> tuple[Tensor, Tensor]:
        return self._points.amin(0), self._points.amax(0)

    @cached_property
    def _center(self) -> Tensor:
        return self._points.mean(0)

    @cached_property
    def _directions(self) -> Tensor:
        """The samples from the center, in squared spreads of each size's log, `[K, N]`."""
        return ((self._points - self._center) / (self._points.std(0, correction=0) + 1e-9) ** 2).t()

    @cached_property
    def _mean(self) -> float:
        return sum(math.log(r) for r in self.rates) / len(self.rates)

    @cached_property
    def _precision(self) -> Tensor:
        """Inverse covariance of the samples, `[N, N]`."""
        return torch.linalg.inv(
            self._covariance(self._points) +
            NOISE**2 * torch.eye(len(self.rates), dtype=torch.float64))

    @cached_property
    def _weights(self) -> Tensor:
        return self._precision @ (_logs([self.rates])[0] - self._mean)

    def _covariance(self, points: Tensor) -> Tensor:
        """Returns the covariance of log(rate) at `points [M, K]` and at the samples, `[M, N]`: the
        sum of field, slopes and level.
        """
        slopes = (points - self._center) @ self._directions
        distance = (points[:, None] - self._points[None]).square().sum(2).sqrt()
        far = math.sqrt(3.0) / LENGTH * distance
        return (1.0 + far) * torch.exp(-far) + SLOPES * slopes + 1.0


def _logs(sizes: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([[math.log(max(v, 1.0)) for v in of] for of in sizes], dtype=torch.float64,
                        device="cpu")
