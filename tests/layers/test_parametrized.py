"""Parameters behind other parameters: weight norm, orthogonal maps, any parametrization, LoRA,
chunks; against the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import against_the_loop
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fxperex
from fxperex.testing import Call, error

Maker = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


class LowRank(nn.Module):
    """A parametrization of two factors: `right_inverse` makes them from the weight there was."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :2] * s[:2], v[:2]


def parametrized(module: nn.Module, *maps: nn.Module, name: str = "weight") -> nn.Module:
    for one in maps:
        parametrize.register_parametrization(module, name, one)
    return module


class Lora(nn.Module):
    """A frozen layer beside a trainable product of low rank; `merged`: one weight, the two added
    up.
    """

    def __init__(self, merged: bool, rank: int = 2) -> None:
        super().__init__()
        self.base, self.merged = nn.Linear(5, 4).requires_grad_(False), merged
        self.a, self.b = nn.Parameter(torch.randn(rank, 5)), nn.Parameter(torch.randn(4, rank))

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.base.weight + 0.5 * self.b @ self.a, self.base.bias)
        return self.base(x) + 0.5 * (x @ self.a.t()) @ self.b.t()


class Stacked(nn.Module):
    """Query, key and value weights in one parameter, cut apart by `chunk`; the bias by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(12, 4)), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, w, self.bias[4 * i:4 * i + 4])
                   for i, w in enumerate(self.weight.chunk(3)))
        return F.scaled_dot_product_attention(q, k, v)


def _tokens() -> tuple[Tensor, ...]:
    return (torch.randn(3, 4, 4),)


def _old_weight_norm(dim: int | None) -> nn.Module:
    return nn.utils.weight_norm(nn.Linear(4, 3).double(), dim=dim)


MODELS: dict[str, Maker] = {
    "weight norm": lambda: (parametrizations.weight_norm(nn.Conv1d(4, 3, 2)), _tokens()),
    "weight norm over all": lambda:
    (parametrizations.weight_norm(nn.Linear(4, 3), dim=None), _tokens()),
    "orthogonal": lambda: (parametrizations.orthogonal(nn.Linear(4, 4)), _tokens()),
    "orthogonal by "
    "Cayley": lambda:
    (parametrizations.orthogonal(nn.Linear(4, 3), orthogonal_map="cayley"), _tokens()),
    "orthogonal by "
    "Householder": lambda:
    (parametrizations.orthogonal(nn.Linear(4, 3), orthogonal_map="householder"), _tokens()),
    "symmetric": lambda: (parametrized(nn.Linear(4, 4), Symmetric()), _tokens()),
    "symmetric of low rank": lambda: (parametrized(nn.Linear(4, 4), LowRank()), _tokens()),
    "one after the "
    "other": lambda: (parametrized(nn.Linear(4, 4), Symmetric(), nn.Tanh()), _tokens()),
    "bias": lambda: (parametrized(nn.Conv1d(4, 3, 2), nn.Softplus(), name="bias"), _tokens()),
    "LoRA": lambda: (Lora(False), (torch.randn(3, 4, 5), )),
    "LoRA, merged": lambda: (Lora(True), (torch.randn(3, 4, 5), )),
    "stacked weight": lambda: (Stacked(), _tokens()),
    "weight and its transpose": lambda: (Call(lambda m, x: F.linear(m(x).tanh(), m.weight.t(
    )), parametrizations.weight_norm(nn.Linear(4, 3))), _tokens()),
    "normalised rows": lambda:
    (Call(lambda m, x: F.linear(x, F.normalize(m.weight, dim=1)) * m.bias.exp(), nn.Linear(4, 3)),
     _tokens()),
}


@pytest.mark.parametrize("name", MODELS)
def test_against_the_loop(name: str) -> None:
    model, batch = MODELS[name]()
    against_the_loop(model.double(), tuple(b.double() for b in batch), ("auto", "ghost"))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("dim", [0, None])
def test_old_weight_norm_equals_the_new(dim: int | None) -> None:
    """The old form's plain tensor stands in the way of the loop's deepcopy."""
    old, new = _old_weight_norm(dim), nn.Linear(4, 3).double()
    with torch.no_grad():
        new.weight.copy_(old.weight)
        new.bias.copy_(old.bias)
    parametrizations.weight_norm(new, dim=dim)
    (x,) = (b.double() for b in _tokens())
    found = [
        fxperex.transform(m, (x, ), forward=lambda m, x: m(x).sin().flatten(1).sum(1),
                          backend="eager").gradients(x) for m in (old, new)
    ]
    pairs = {
        "bias": "bias", "weight_g": "parametrizations.weight.original0",
        "weight_v": "parametrizations.weight.original1"
    }
    assert set(found[0]) == set(pairs)
    for one, two in pairs.items():
        assert error(found[0][one], found[1][two], 1e-3) <= 1e-10, one
