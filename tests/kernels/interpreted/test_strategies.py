"""The Triton strategies over every sample of the kinds they serve, against the float64 loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxperex
from fxperex.registry import kinds
from fxperex.testing import Call, clipped, error, loop

KINDS = kinds()
MERGED = Call(lambda m, x: m(x.flatten(0, 1)).unflatten(0, (-1, 2)), nn.GroupNorm(2, 4))
CASES: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = [
    (name, *sample) for name, kind in [("fused", "linear"), ("fused", "conv"), ("fused_stored", "linear"),
                                       ("fused_stored", "conv"), ("affine", "norm")] for sample in KINDS[kind].samples()]
CASES += [("affine", MERGED, (torch.randn(3, 2, 4, 5),)), ("affine", nn.GroupNorm(2, 4), (torch.randn(3, 4),))]


def _loss(model: nn.Module, *batch: Tensor) -> Tensor:
    out = model(*batch)
    weights = torch.linspace(0.5, 2.0, out[0].numel(), dtype=out.dtype).reshape(out.shape[1:])
    return ((out * weights).sin() + out**2 / 3).flatten(1).sum(1)


@pytest.mark.parametrize(("name", "model", "batch"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_against_the_loop(name: str, model: nn.Module, batch: tuple[Tensor, ...]) -> None:
    torch.manual_seed(3)
    model = copy.deepcopy(model)
    truth = loop(model, _loss, batch)
    clip = float(sum(g.reshape(len(g), -1).square().sum(1) for g in truth.values()).sqrt().median()) * 0.7
    total, norms = clipped(truth, clip)
    private = fxperex.transform(model, batch, forward=_loss, clip=clip, strategy=name, backend="eager")
    result = private.step(*batch)
    assert error(result.norms, norms) <= 1e-5
    for p, want in total.items():
        assert error(dict(model.named_parameters())[p].grad, want, 1e-3 * float(norms.max())) <= 1e-5, p


def test_the_samples_reach_the_strategies() -> None:
    for name, model, batch in [CASES[0], CASES[-1]]:
        private = fxperex.transform(model, batch, forward=_loss, strategy=name, backend="eager")
        assert name in {c.strategy for c in private.plan.choices}
        assert "fxperex." in private.step_graph.print_readable(print_output=False)


def test_auto_never_plans_on_the_interpreter() -> None:
    x = torch.randn(3, 3, 6, 6)
    private = fxperex.transform(nn.Conv2d(3, 4, 3), (x,), forward=_loss, backend="eager")
    assert not {c.strategy for c in private.plan.choices} & {"fused", "fused_stored", "affine"}


@pytest.mark.parametrize("name", ["fused", "fused_stored"])
def test_cancelling_tokens_stay_within_the_bound(name: str) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    x = signs * torch.randn(1, 1, 32) + 1e-3 * torch.randn(1, 64, 32)
    model, weights = nn.Linear(32, 16, bias=False), torch.randn(16)
    fxperex.transform(model, (x,), forward=lambda m, v: 1e3 * (m(v) * weights).sum((1, 2)), strategy=name,
                      backend="eager").step(x)
    assert model.weight.grad is not None and float(model.weight.grad.double().norm()) <= 1 + 2.0**-20


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, inside the interpreter
def test_an_example_that_is_not_finite_adds_nothing() -> None:
    for name in ("fused", "fused_stored"):
        model, x = nn.Linear(5, 3), torch.randn(4, 6, 5)
        private = fxperex.transform(model, (x,), forward=_loss, strategy=name, backend="eager")
        private.step(x[1:])
        want = model.weight.grad.clone()  # type: ignore[union-attr]
        model.zero_grad()
        x[0, 2, 1] = float("inf")
        assert private.step(x).dropped == 1
        assert error(model.weight.grad, want) <= 1e-6  # type: ignore[arg-type]
