"""torchvision's families against the float64 loop: clipped sum and norms within 1e-5, under `auto`
and by strategy.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import fxperex
from fxperex.capture.forward import as_forward
from fxperex.testing import clipped, error, loop

LOSS = nn.CrossEntropyLoss()


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)


def normless(model: nn.Module) -> nn.Module:
    """`model` with every BatchNorm replaced by GroupNorm."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            model._modules[name] = group_norm(child.num_features)
        else:
            normless(child)
    return model


def toy(layers: int = 3, rate: float = 1.5, kernel: int = 3, size: int = 16) -> nn.Module:
    """The paper's toy CNN (arXiv 1912.06015): first channels 25, padding 2, a pool after every
    second layer.
    """
    parts: list[nn.Module] = []
    channels, side = 3, size
    for i in range(layers):
        out = int(25 * rate**i)
        parts += [nn.Conv2d(channels, out, kernel, padding=2), nn.ReLU()]
        channels, side = out, side + 5 - kernel
        if i % 2 == 1:
            parts.append(nn.MaxPool2d(2, 2))
            side //= 2
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels * side**2, 10))


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (lambda: models.resnet18(norm_layer=group_norm, num_classes=10), 32, 4),
    "resnet50": (lambda: models.resnet50(norm_layer=group_norm, num_classes=10), 32, 3),
    "vgg11": (lambda: models.vgg11(num_classes=10, dropout=0.0), 32, 2),
    "alexnet": (lambda: models.alexnet(num_classes=10, dropout=0.0), 64, 3),
    "mobilenet_v3_small": (lambda: normless(models.mobilenet_v3_small(num_classes=10, dropout=0.0)),
                           32, 3),
    "densenet121": (lambda: normless(models.densenet121(num_classes=10)), 32, 2),
    "convnext_tiny": (lambda: models.convnext_tiny(num_classes=10, stochastic_depth_prob=0.0), 32,
                      2),
    "swin_t": (lambda: models.swin_t(num_classes=10).eval(), 32, 2),
    "vit": (lambda: models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10), 32, 4),
    "toy": (toy, 16, 5),
}


# A ghost norm covers what the sum over a site's positions may round, `(T + 2) 2^-24 S / n`: with at
# most 20^2 positions here and S up to 1.5 n, up to 4e-5 of a norm. It is never below the norm.
CERTIFIED = {"ghost": 4e-5}


def away_from_kinks(model: nn.Module, rows: int,
                    size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Returns a batch, and its true gradients, at which the ordinary float32 backward is right to
    1e-5.

    A ReLU or a maximum within rounding of its kink takes the other branch in float32, in any
    library; then there is no gradient to agree on (resnet50 at one thread and a batch of three:
    7e-4 off, by the plain loop as well).
    """
    for _ in range(5):
        x, y = torch.randn(rows, 3, size, size), torch.randint(0, 10, (rows,))
        truth = loop(model, as_forward(LOSS), (x, y))
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
        named = dict(model.named_parameters())
        plain = torch.cat([named[n].grad.flatten() for n in truth])  # type: ignore[union-attr]
        model.zero_grad()
        if error(plain, torch.cat([g.sum(0).flatten() for g in truth.values()])) <= 1e-5:
            return x, y, truth
    raise AssertionError("five batches in a row on a kink: something else is wrong")


def check(name: str, strategy: str, backend: str = "eager") -> fxperex.PerExampleModule:
    make, size, rows = FAMILIES[name]
    torch.manual_seed(1)
    model = make()
    with torch.no_grad():  # away from the zeros that some heads start with
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    x, y, truth = away_from_kinks(model, rows, size)
    clip = 0.5 * float(clipped(truth, 1.0)[1].median())
    norms = clipped(truth, clip)[1]
    private = fxperex.transform(model, (x, y), LOSS, clip=clip, strategy=strategy, backend=backend)
    result = private.step(x, y)
    assert (result.norms >= norms * (1 - 1e-6)).all()
    assert error(result.norms, norms) <= CERTIFIED.get(strategy, 1e-5)
    assert error(result.factors, (clip / result.norms).clamp(max=1.0)) <= 1e-12
    sums = torch.cat([p.grad.double().flatten() for p in model.parameters()])
    exact = [torch.einsum("b,b...->...", result.factors, truth[n]).flatten()
             for n, _ in model.named_parameters()]
    assert error(sums, torch.cat(exact)) <= 1e-5
    return private


# Those that `families` has as well, or that are like another here, are for the nightly run.
ORDINARY = {"resnet18", "alexnet", "swin_t", "toy"}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ORDINARY else pytest.mark.nightly) for name in FAMILIES])
def test_auto(name: str) -> None:
    check(name, "auto")


@pytest.mark.parametrize("strategy", ["naive", "multi", "crb", "unfold", "ghost"])
@pytest.mark.parametrize("name", ["toy", "resnet18"])
def test_every_strategy(name: str, strategy: str) -> None:
    private = check(name, strategy)
    if strategy != "naive":
        convs = [c for c in private.plan.choices if c.site.kind == "conv"]
        assert convs
        assert all(c.strategy == strategy for c in convs)


@pytest.mark.parametrize("name", ["toy", pytest.param("resnet18", marks=pytest.mark.nightly)])
def test_inductor(name: str) -> None:
    private = check(name, "auto", "inductor")
    assert private.backend == "inductor"


@pytest.mark.parametrize("strategy", [
    "crb", "ghost", *(pytest.param(name, marks=pytest.mark.nightly)
                      for name in ("naive", "multi", "unfold"))])
def test_inductor_by_strategy(strategy: str) -> None:
    assert check("toy", strategy, "inductor").backend == "inductor"


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["naive", "multi", "crb", "unfold", "ghost"])
def test_inductor_by_strategy_resnet18(strategy: str) -> None:
    assert check("resnet18", strategy, "inductor").backend == "inductor"
