"""The noise is Gaussian of the asked spread, no two tensors share any of it, and none is used twice."""

from __future__ import annotations

import math

import pytest
import torch

from fxperex.errors import ConfigError, PrivacyError
from fxperex.privacy import GaussianNoise


def _draw(noise: GaussianNoise, step: int, count: int, items: int = 1) -> list[torch.Tensor]:
    return noise.release([torch.zeros(count, dtype=torch.float64)] * items, 1.0, step)


def test_moments_and_distribution() -> None:
    z = GaussianNoise(2.0, seed=0).release([torch.full((200_000,), 5.0, dtype=torch.float64)], 1.25, 0, 2.5)[0] - 2
    assert abs(z.mean()) < 0.01 and abs(z.var() - 1) < 0.02 and abs(z.pow(4).mean() - 3) < 0.1
    # Kolmogorov-Smirnov at level 1e-4: 2.23 / sqrt(n).
    cdf = torch.special.ndtr(z.sort().values)
    assert (cdf - torch.arange(1, len(z) + 1) / len(z)).abs().max() < 2.23 / math.sqrt(len(z))


def test_streams_do_not_meet() -> None:
    noise = GaussianNoise(1.0, seed=0)
    streams = _draw(noise, 0, 20_000, 2) + _draw(noise, 1, 20_000, 2)
    assert torch.corrcoef(torch.stack(streams)).fill_diagonal_(0).abs().max() < 0.04
    assert len(torch.cat(streams).unique()) == 80_000


def test_keys() -> None:
    def first(seed: int | None) -> torch.Tensor:
        return _draw(GaussianNoise(1.0, seed), 0, 4)[0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert not torch.equal(first(None), first(None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounded_once_after_the_noise(dtype: torch.dtype) -> None:
    sums = torch.linspace(-3, 3, 12).reshape(3, 4).to(dtype)
    exact = GaussianNoise(0.5, seed=5).release([sums.double()], 1.0, 0, 7.0)[0]
    assert torch.equal(GaussianNoise(0.5, seed=5).release([sums], 1.0, 0, 7.0)[0], exact.to(dtype))


def test_misuse_is_refused() -> None:
    for multiplier in (0.0, math.inf, math.nan, -1.0):
        with pytest.raises(ConfigError):
            GaussianNoise(multiplier)
    noise = GaussianNoise(1.0)
    _draw(noise, 3, 1)
    for step in (3, 2):
        with pytest.raises(PrivacyError, match="never used twice"):
            _draw(noise, step, 1)
