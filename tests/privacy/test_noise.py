"""The noise is Gaussian of the asked spread, and no two tensors share any of it."""

from __future__ import annotations

import math

import pytest
import torch

from fxperex.errors import ConfigError
from fxperex.privacy import GaussianNoise


def test_moments_and_distribution() -> None:
    z = GaussianNoise(seed=0).draw((200_000,), 2.5, 0, 0) / 2.5
    assert z.dtype == torch.float64
    assert abs(z.mean()) < 0.01 and abs(z.var() - 1) < 0.02 and abs(z.pow(4).mean() - 3) < 0.1
    # Kolmogorov-Smirnov at level 1e-4: 2.23 / sqrt(n).
    cdf = torch.special.ndtr(z.sort().values)
    assert (cdf - torch.arange(1, len(z) + 1) / len(z)).abs().max() < 2.23 / math.sqrt(len(z))


def test_streams_do_not_meet() -> None:
    noise = GaussianNoise(seed=0)
    streams = [noise.draw((20_000,), 1.0, step, index) for step, index in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert torch.corrcoef(torch.stack(streams)).fill_diagonal_(0).abs().max() < 0.04
    values = torch.cat(streams)
    assert len(values.unique()) == len(values)


def test_keys() -> None:
    def first(seed: int | None) -> torch.Tensor:
        return GaussianNoise(seed).draw((4,), 1.0, 0, 0)

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert not torch.equal(first(None), first(None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounded_once_after_the_noise(dtype: torch.dtype) -> None:
    noise, value = GaussianNoise(seed=5), torch.linspace(-3, 3, 12).reshape(3, 4).to(dtype)
    expected = (value.double() + noise.draw((3, 4), 0.5, 2, 1)).to(dtype)
    assert noise.add_(value, 0.5, 2, 1) is value
    assert torch.equal(value, expected)
    assert noise.draw((), 1.0, 0, 0).shape == ()


def test_nonsense_is_refused() -> None:
    noise = GaussianNoise()
    for std, step, index in ((0.0, 0, 0), (math.inf, 0, 0), (1.0, -1, 0), (1.0, 0, True)):
        with pytest.raises(ConfigError):
            noise.draw((2,), std, step, index)
    with pytest.raises(ConfigError):
        noise.add_(torch.zeros(2, dtype=torch.int64), 1.0, 0, 0)
