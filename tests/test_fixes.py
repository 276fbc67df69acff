"""fix: what cannot be private becomes what can, every change is told, and the caller's model stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

import fxperex
from fxperex.errors import BatchMixingError, ConfigError, CoverageError
from fxperex.fixes import groups
from fxperex.testing import as_forward, clipped, error, loop


def test_a_resnet_becomes_private() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    batch = (torch.randn(3, 3, 32, 32), torch.randint(0, 4, (3,)))
    with pytest.raises(BatchMixingError, match="GroupNorm"):
        fxperex.transform(model, batch, nn.CrossEntropyLoss(), backend="eager")
    state = copy.deepcopy(model.state_dict())
    fixed, changes = fxperex.fix(model)
    assert len(changes) == 20 and all("BatchNorm2d" in c.before and "GroupNorm" in c.after for c in changes)
    assert str(changes[0]).startswith("bn1: BatchNorm2d(64")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    total, norms = clipped(loop(fixed, as_forward(nn.CrossEntropyLoss()), batch), 1.0)
    result = fxperex.transform(fixed, batch, nn.CrossEntropyLoss(), backend="eager").step(*batch)
    assert error(result.norms, norms) <= 1e-5
    assert error(fixed.conv1.weight.grad, total["conv1.weight"]) <= 1e-4


def test_affine_parts_modes_and_sharing_are_kept() -> None:
    shared = nn.BatchNorm1d(8)
    model = nn.Sequential(shared, nn.Linear(8, 8), shared, nn.BatchNorm1d(6, affine=False, eps=0.1)).eval()
    with torch.no_grad():
        shared.weight.normal_()
    shared.bias.requires_grad_(False)
    fixed, changes = fxperex.fix(model)
    assert [c.name for c in changes] == ["0", "3"]
    assert fixed[0] is fixed[2] and not fixed[0].training
    assert torch.equal(fixed[0].weight, shared.weight) and fixed[0].weight is not shared.weight
    assert not fixed[0].bias.requires_grad
    assert fixed[3].weight is None and fixed[3].eps == 0.1


def test_statistics_and_embeddings() -> None:
    model = nn.ModuleDict({"norm": nn.InstanceNorm2d(4, track_running_stats=True), "plain": nn.InstanceNorm2d(4),
                           "ids": nn.Embedding(5, 2, max_norm=1.0, scale_grad_by_freq=True),
                           "bag": nn.EmbeddingBag(5, 2, sparse=True)})
    fixed, changes = fxperex.fix(model)
    assert [c.name for c in changes] == ["norm", "ids", "bag"]
    assert "running statistics" in changes[0].why and "max_norm" in changes[1].why and "sparse" in changes[2].why
    out = fixed["norm"](torch.randn(2, 4, 3, 3))
    assert torch.isfinite(out).all() and not fixed["norm"].state_dict()
    assert fixed["ids"].max_norm is None and not fixed["ids"].scale_grad_by_freq and not fixed["bag"].sparse


def test_nothing_to_fix_and_nothing_fixable() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3))
    assert fxperex.fix(model)[1] == []
    assert isinstance(fxperex.fix(nn.BatchNorm1d(8))[0], nn.GroupNorm)
    with pytest.raises(CoverageError, match="lazy"):
        fxperex.fix(nn.Sequential(nn.LazyBatchNorm1d()))
    with pytest.raises(ConfigError, match=r"torch\.nn\.Module"):
        fxperex.fix(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "found"), [(64, 16), (512, 32), (3, 1), (12, 3), (96, 24), (7, 1), (1, 1)])
def test_a_divisor_that_fits(channels: int, found: int) -> None:
    assert groups(channels) == found
