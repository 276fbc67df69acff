"""A kernel's rate between the shapes it was measured at.

log(rate) is a trend in the logs of the sizes, held constant outside the measured range, plus the nearby residuals
weighted by an inverse power of the distance: exact where it was measured, smooth between. The trend is quadratic where
there are samples enough to tell (rates level off), else linear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

RIDGE = 0.001  # keeps the trend flat along sizes that few samples vary
SAMPLES = 2  # for each coefficient of a quadratic trend
POWER = 3  # of the squared distance


@dataclass(frozen=True)
class Surface:
    """`shapes [N][K]`, `rates [N]` of one kernel and dtype."""

    shapes: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...]

    def rate(self, shape: Sequence[float]) -> float:
        """Returns the predicted amount per second at `shape`."""
        point = [min(max(_log(v), low), high) for v, (low, high) in zip(shape, self._ranges, strict=True)]
        total = weight = 0.0
        for known, residual in zip(self._points, self._residuals, strict=True):
            distance = sum((a - b) ** 2 for a, b in zip(point, known, strict=True))
            near = 1.0 / (distance + 1e-6) ** POWER
            total, weight = total + near * residual, weight + near
        return math.exp(self._trend(point) + total / weight)

    def leave_one_out(self) -> float:
        """Returns the median relative error of predicting each sample from the others; 0 for fewer than 4."""
        if len(self.shapes) < 4:
            return 0.0
        off = []
        for i, (shape, rate) in enumerate(zip(self.shapes, self.rates, strict=True)):
            rest = Surface(self.shapes[:i] + self.shapes[i + 1:], self.rates[:i] + self.rates[i + 1:])
            off.append(abs(math.log(rest.rate(shape) / rate)))
        return math.expm1(sorted(off)[len(off) // 2])

    @cached_property
    def _points(self) -> list[list[float]]:
        return [[_log(v) for v in shape] for shape in self.shapes]

    @cached_property
    def _ranges(self) -> list[tuple[float, float]]:
        return [(min(column), max(column)) for column in zip(*self._points, strict=True)]

    @cached_property
    def _scales(self) -> list[tuple[float, float]]:
        """Mean and spread of each size's log."""
        columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*self._points, strict=True)]
        return [(float(c.mean()), float(c.std(correction=0)) + 1e-9) for c in columns]

    @cached_property
    def _quadratic(self) -> bool:
        sizes = len(self.shapes[0])
        return len(self.shapes) >= SAMPLES * (1 + sizes + sizes * (sizes + 1) // 2)

    def _features(self, point: list[float]) -> list[float]:
        z = [(v - mean) / spread for v, (mean, spread) in zip(point, self._scales, strict=True)]
        squares = [a * b for i, a in enumerate(z) for b in z[i:]] if self._quadratic else []
        return [1.0, *z, *squares]

    @cached_property
    def _coefficients(self) -> list[float]:
        x = torch.tensor([self._features(p) for p in self._points], dtype=torch.float64)
        y = torch.tensor([math.log(r) for r in self.rates], dtype=torch.float64)
        ridge = RIDGE * len(self.rates) * torch.eye(x.shape[1], dtype=torch.float64)
        ridge[0, 0] = 1e-9
        return torch.linalg.solve(x.t() @ x + ridge, x.t() @ y).tolist()

    @cached_property
    def _residuals(self) -> list[float]:
        return [math.log(r) - self._trend(p) for p, r in zip(self._points, self.rates, strict=True)]

    def _trend(self, point: list[float]) -> float:
        return sum(c * v for c, v in zip(self._coefficients, self._features(point), strict=True))


def _log(value: float) -> float:
    return math.log(max(value, 1.0))
