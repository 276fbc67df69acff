"""Parameters of 16 bits and autocast: every strategy agrees with the ordinary backward of the same
precision.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxperex
from fxperex.testing import clipped, error, loop

HALVES = (torch.bfloat16, torch.float16)


def _twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(
        2, 8), nn.Tanh(), nn.Conv2d(8, 4, 2), nn.Flatten(), nn.Linear(16, 5)), (3, 3, 3)),
    "positions": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 5)), (7,
                                                                                              6)),
    "one layer twice": (_twice, (7, 6)),
}


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x).flatten(1)
    return (out if out.dtype == torch.float64 else out.float()).square().sum(1)


@pytest.mark.parametrize("strategy", ["auto", "naive", "multi", "crb", "unfold", "ghost", "vmap"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_16_bits(name: str, dtype: torch.dtype, strategy: str) -> None:
    make, shape = MODELS[name]
    model, x = make().to(dtype), torch.randn(4, *shape).to(dtype)
    total, norms = clipped(loop(model, _loss, (x,)), 1.0)
    result = fxperex.transform(model, (x, ), forward=_loss, strategy=strategy,
                               backend="eager").step(x)
    # Three layers forward and back, each rounding its result once to `eps / 2`, and the spread of a
    # few such errors.
    limit = 8 * torch.finfo(dtype).eps
    assert error(result.norms, norms) <= limit
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.dtype == dtype
        assert error(p.grad, total[key], 0.05) <= limit, key


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    make, shape = MODELS[name]
    model, x = make(), torch.randn(4, *shape)
    total, norms = clipped(loop(model, _loss, (x,)), 1.0)
    result = fxperex.transform(model, (x,), forward=_loss, autocast=dtype, backend="eager").step(x)
    limit = 8 * torch.finfo(dtype).eps
    assert error(result.norms, norms) <= limit
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.dtype == torch.float32
        assert error(p.grad, total[key], 0.05) <= limit, key
