"""The model families of the tests: how to build each at a small size, and its loss as people write
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A built family: `forward(model, *batch) -> loss`, a mean over the batch unless the family
    says otherwise.
    """

    model: nn.Module
    batch: tuple[Tensor, ...]
    forward: Forward


@dataclass(frozen=True)
class Family:
    """`group`: the heading in the docs table; `needs`: the package beside torch; `heavy`: left to
    the nightly run.
    """

    name: str
    group: str
    make: Callable[[], Case]
    needs: str = ""
    heavy: bool = False


FAMILIES: dict[str, Family] = {}


def family(name: str, group: str, needs: str = "",
           heavy: bool = False) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Decorator: the function builds the family `name`. A duplicate raises."""

    def add(make: Callable[[], Case]) -> Callable[[], Case]:
        assert name not in FAMILIES, name
        FAMILIES[name] = Family(name, group, make, needs, heavy)
        return make

    return add


def build(name: str) -> Case:
    """Returns the family's Case from a fixed seed, its parameters moved off the zeros that some
    heads start with.
    """
    torch.manual_seed(1)
    case = FAMILIES[name].make()
    with torch.no_grad():
        for p in case.model.parameters():
            if p.is_floating_point():
                p.add_(0.01 * torch.randn_like(p))
    return case


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def images(rows: int, size: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, size, size), torch.randint(0, classes, (rows,))


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)


def normless(model: nn.Module) -> nn.Module:
    """`model` with every BatchNorm replaced by GroupNorm; what timm's subclasses do after it (drop,
    act) stays.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            model._modules[name] = nn.Sequential(group_norm(child.num_features), *child.children())
        else:
            normless(child)
    return model


def still(model: nn.Module) -> nn.Module:
    """`model` without randomness: dropout and stochastic depth at probability zero."""
    for module in model.modules():
        if "Dropout" in type(module).__name__ or "StochasticDepth" in type(module).__name__:
            module.p = 0.0
    return model
