"""A small private run that any number of ranks takes together, on rows that are chosen for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxperex
from fxperex.privacy import PrivacyEngine
from fxperex.privacy.sampling.poisson import PoissonSampler

SIZE, ROWS = 40, 4
UNEVEN = (37, 0, 3, 13, 20)


class Chosen(PoissonSampler):
    """Draws so many rows in each step as `counts` says. For tests: the account does not hold."""

    counts = UNEVEN

    def draw(self, step: int, generation: int = 0) -> Tensor:
        g = torch.Generator().manual_seed(100 * generation + step)
        return torch.randperm(self.size, generator=g)[:self.counts[step]].sort().values


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.25), nn.Linear(9, 3)).to(dtype)


def conv(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(),
                         nn.Flatten(), nn.Linear(16, 3)).to(dtype)


class Tied(nn.Module):
    """A weight at two sites, and a parametrised one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


def tied(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return Tied().to(dtype)


class Transformer(nn.Module):
    """Two positions of three numbers, one block, pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.unflatten(1, (2, 3)))
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (2, 12)).transpose(1, 2).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(mixed)).mean(1))


def transformer(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return Transformer().to(dtype)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp, "conv": conv, "tied": tied, "transformer": transformer}


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(SIZE, 6, generator=g).to(dtype), torch.arange(SIZE) % 3


def private_of(model: nn.Module, **change: Any) -> fxperex.PerExampleModule:
    x, y = data(next(model.parameters()).dtype)
    return fxperex.transform(model, (x[:ROWS], y[:ROWS]), nn.functional.cross_entropy,
                             **{"clip": 0.5, "backend": "eager"} | change)


def engine_of(private: fxperex.PerExampleModule, **change: Any) -> PrivacyEngine:
    parameters = private.parameters.values()
    optimizer = change.pop("optimizer", None) or torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    dtype = next(iter(parameters)).dtype
    sampling = change.pop("sampling", None) or Chosen(SIZE, 10, len(UNEVEN), seed=5)
    settings = {"expected_batch": 10, "epochs": 1.25, "delta": 1e-3, "noise_multiplier": 1.3,
                "seed": 5, "sampling": sampling} | change
    return PrivacyEngine(private, optimizer, data(dtype), **settings)


def outcome(engine: PrivacyEngine) -> dict[str, Any]:
    """What must not depend on the number of ranks."""
    books = engine.books
    return {"parameters": {n: p.detach().clone() for n, p in engine.private.parameters.items()},
            "steps": engine.steps_done, "units": books.units, "extra": books.extra,
            "epsilon": engine.epsilon(), "bound": engine.private.clip.sensitivity,
            "hashes": [r.get("hash") for r in books.ledger.of("sum")]}


def trained(model: nn.Module, transformed: dict[str, Any] | None = None,
            **change: Any) -> dict[str, Any]:
    """Returns the outcome of a whole run of `model`."""
    with engine_of(private_of(model, **transformed or {}), **change) as engine:
        for _ in engine:
            pass
        return outcome(engine)
