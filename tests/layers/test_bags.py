"""Embedding bags of `[B, T]` ids against the loop: every mode, padding, repeated ids, weights; what
has no place is refused.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxperex
from fxperex.errors import BatchMixingError
from fxperex.testing import clipped, error, loop


def _curved(out: Tensor) -> Tensor:
    return out.flatten(1).square().sum(1) + out.flatten(1).sin().sum(1)


def _ids() -> Tensor:
    ids = torch.randint(0, 7, (5, 4))
    ids[0], ids[1] = 2, 3  # a bag of padding alone, and one id four times
    return ids


@pytest.mark.parametrize("strategy", ["auto", "ghost", "multi", "naive"])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_equals_the_loop(mode: str, padding: int | None, strategy: str) -> None:
    def forward(model: nn.Module, ids: Tensor) -> Tensor:
        return _curved(model(ids))

    model, ids = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=padding).double(), _ids()
    total, norms = clipped(loop(model, forward, (ids,)), 1.0)
    result = fxperex.transform(model, (ids, ), forward=forward, strategy=strategy,
                               backend="eager").step(ids)
    assert error(result.norms, norms) <= 1e-10
    assert model.weight.grad is not None and error(model.weight.grad, total["weight"]) <= 1e-10


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_one(mode: str) -> None:
    def forward(model: nn.Module, ids: Tensor) -> Tensor:
        return _curved(model(ids))

    model, ids = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=2).double(), _ids()[:, :1]
    found = fxperex.transform(model, (ids,), forward=forward, backend="eager").gradients(ids)
    assert error(found["weight"], loop(model, forward, (ids,))["weight"]) <= 1e-10


def test_per_sample_weights() -> None:
    def forward(model: nn.Module, ids: Tensor, weights: Tensor) -> Tensor:
        return _curved(model(ids, per_sample_weights=weights))

    model, batch = nn.EmbeddingBag(7, 3, mode="sum").double(), (_ids(), torch.randn(5, 4).double())
    total, norms = clipped(loop(model, forward, batch), 1.0)
    result = fxperex.transform(model, batch, forward=forward, backend="eager").step(*batch)
    assert error(result.norms, norms) <= 1e-10
    assert model.weight.grad is not None and error(model.weight.grad, total["weight"]) <= 1e-10


def test_bags_of_differing_lengths_are_refused() -> None:
    model, starts = nn.EmbeddingBag(7, 3, mode="sum"), torch.tensor([0, 3, 8, 12, 16])
    with pytest.raises(BatchMixingError, match="embedding_bag"):
        fxperex.transform(model, (_ids().flatten(), ),
                          forward=lambda m, x: m(x, starts).square().sum(1), backend="eager")
