"""The running step: any number of rows, tied and re-parametrised weights, and nothing touched but `.grad`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.clipping import Automatic
from fxperex.testing import clipped, error, loop


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).flatten(1).square().sum(1)


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def _check(model: nn.Module, x: Tensor, strategy: str = "auto", clip: float = 1.0) -> None:
    total, norms = clipped(loop(model, _loss, (x,)), clip)
    private = fxperex.transform(model, (x,), forward=_loss, clip=clip, strategy=strategy, backend="eager")
    assert error(private.step(x).norms, norms) <= 1e-9
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and error(p.grad, total[name], 1e-3) <= 1e-9, name


@pytest.mark.parametrize("strategy", ["auto", "naive"])
def test_any_number_of_rows(strategy: str) -> None:
    model = _net()
    private = fxperex.transform(model, (torch.randn(4, 5).double(),), forward=_loss, strategy=strategy, backend="eager")
    for rows in (3, 0, 1, 9, 4):
        x = torch.randn(rows, 5).double()
        total, norms = clipped(loop(model, _loss, (x,)), 1.0)
        model.zero_grad()
        result = private.step(x)
        assert result.norms.shape == result.losses.shape == result.factors.shape == (rows,)
        assert error(result.norms, norms) <= 1e-10
        for name, p in model.named_parameters():
            assert p.grad is not None and error(p.grad, total[name]) <= 1e-10
        assert private.gradients(x)["0.weight"].shape == (rows, 4, 5)


def test_the_model_is_untouched_but_for_grad() -> None:
    model, x = _net(), torch.randn(4, 5).double()
    state = copy.deepcopy(model.state_dict())
    kept = [(dict(vars(m)), m.training) for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    random = torch.get_rng_state()
    fxperex.transform(model, (x,), forward=_loss, backend="eager").step(x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for m, (attributes, training) in zip(model.modules(), kept, strict=True):
        assert vars(m).keys() == attributes.keys() and m.training == training
    assert hooks == [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]


def test_grad_accumulates_and_dropout_repeats() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x = torch.randn(4, 5).double()
    private = fxperex.transform(model, (x,), forward=_loss, backend="eager")
    results: list[fxperex.StepResult] = []
    first: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(private.step(x))
        first = first or [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert torch.equal(results[0].norms, results[1].norms)
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(model.parameters(), first, strict=True) if p.grad is not None)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x.abs().long().clamp(max=6)).tanh())


class _Functional(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh() + x @ self.weight.t()


class _Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x.tanh(), x.sin(), need_weights=False)[0]


def _twice() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer)




SHARED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "embedding and head": (_Tied, (3,)),
    "same layer twice": (_twice, (5,)),
    "used functionally": (lambda: _Functional(5, 3), (6, 5)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), (6, 5)),
    "attention, one projection in pieces": (lambda: _Attention(4, 2, batch_first=True), (3, 4)),
}


@pytest.mark.parametrize("strategy", ["auto", "ghost", "multi"])
@pytest.mark.parametrize("name", SHARED)
def test_shared_and_derived_weights(name: str, strategy: str) -> None:
    make, shape = SHARED[name]
    _check(make().double(), 3 * torch.randn(4, *shape).double(), strategy)


def test_frozen_and_unused_parameters() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
            self.net[0].weight.requires_grad_(False)
            self.spare = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = Plain().double()
    _check(model, torch.randn(4, 5).double())
    assert model.net[0].weight.grad is None and model.spare.grad is not None and not model.spare.grad.any()


def test_automatic_clipping() -> None:
    model, x = _net(), torch.randn(4, 5).double()
    truth = loop(model, _loss, (x,))
    _, norms = clipped(truth, 1.0)
    result = fxperex.transform(model, (x,), forward=_loss, clip=Automatic(0.5, 0.1), backend="eager").step(x)
    factors = 0.5 / (norms + 0.1)
    assert error(result.factors, factors) <= 1e-10
    for name, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, torch.einsum("b,b...->...", factors, truth[name])) <= 1e-10


def test_the_norm_of_forty_million_entries() -> None:
    model = nn.Linear(8000, 5000, bias=False)
    x = torch.randn(1, 8000)
    private = fxperex.transform(model, (x,), forward=lambda m, v: F.gelu(m(v)).sum(1), backend="eager")
    result = private.step(x)
    y = (x.double() @ model.weight.detach().double().t()).requires_grad_()
    g = torch.autograd.grad(F.gelu(y).sum(), y)[0]
    assert error(result.norms, g.norm(dim=1) * x.double().norm(dim=1)) <= 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_cancelling_tokens_stay_within_the_bound(seed: int) -> None:
    torch.manual_seed(seed)
    signs = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    x = (signs * torch.randn(1, 1, 32) + 1e-3 * torch.randn(1, 64, 32))
    model, weights = nn.Linear(32, 16, bias=False), torch.randn(16)
    private = fxperex.transform(model, (x,), forward=lambda m, v: 1e3 * (m(v) * weights).sum((1, 2)), clip=1.0,
                                strategy="ghost", backend="eager")
    private.step(x)
    assert model.weight.grad is not None and float(model.weight.grad.double().norm()) <= 1 + 2.0**-20


def test_norms_write_nothing() -> None:
    model: nn.Module = _net()
    x = torch.randn(4, 5).double()
    private = fxperex.transform(model, (x,), forward=_loss, backend="eager")
    assert error(private.norms(x), private.step(x).norms) <= 1e-12
