"""Every layer kind x strategy x sample x dtype against the float64 loop; a new rule is tested the moment it exists."""

from __future__ import annotations

import copy

import pytest
import torch

import fxperex
from fxperex.errors import ConfigError
from fxperex.registry import kinds, layer_kind, strategies, strategy
from fxperex.testing import clipped, error, loop

KINDS, STRATEGIES = kinds(), strategies()
CASES = [(k, i, d) for k, kind in KINDS.items() for i in range(len(kind.samples()))
         for d in (torch.float64, torch.float32)]
LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}


def _loss(model: torch.nn.Module, *batch: torch.Tensor) -> torch.Tensor:
    out = model(*batch)
    # A non-linear loss: output gradients differ by element and example.
    weights = torch.linspace(0.5, 2.0, out[0].numel(), dtype=out.dtype).reshape(out.shape[1:])
    return ((out * weights).sin() + out**2 / 3).flatten(1).sum(1)


def _sample(kind: str, index: int, dtype: torch.dtype) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(7)
    model, batch = KINDS[kind].samples()[index]
    model = copy.deepcopy(model).to(dtype)
    return model, tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)


@pytest.mark.parametrize(("kind", "index", "dtype"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_against_the_loop(kind: str, index: int, dtype: torch.dtype) -> None:
    model, batch = _sample(kind, index, dtype)
    truth = loop(model, _loss, batch)
    # A clip below most norms, so that the factors matter.
    clip = float(sum(g.reshape(len(g), -1).square().sum(1) for g in truth.values()).sqrt().median()) * 0.7
    total, norms = clipped(truth, clip)
    ran = set()
    for name in STRATEGIES:
        private = fxperex.transform(model, batch, forward=_loss, clip=clip, strategy=name, backend="eager")
        assert all(c.site.kind in KINDS for c in private.plan.choices)
        ran |= {(c.site.kind, c.strategy) for c in private.plan.choices}
        model.zero_grad()
        result = private.step(*batch)
        found = {n: p.grad for n, p in model.named_parameters()}
        assert error(result.norms, norms) <= LIMIT[dtype], name
        for p, want in total.items():
            assert error(found[p], want, 1e-3 * float(norms.max())) <= LIMIT[dtype], (name, p)
        if name in {"naive", "vmap"}:
            grads = private.gradients(*batch)
            for p, want in truth.items():
                assert error(grads[p], want, 1e-3 * float(norms.max())) <= LIMIT[dtype], (name, p)
    assert any(k == kind for k, _ in ran), f"the samples of {kind} reach no site of that kind"


def test_every_legal_pair_is_reached() -> None:
    reached = set()
    for kind in KINDS:
        for index in range(len(KINDS[kind].samples())):
            model, batch = _sample(kind, index, torch.float64)
            plan = fxperex.transform(model, batch, forward=_loss, backend="eager").plan
            for choice in plan.choices:
                legal = {choice.strategy, *(k for k, v in choice.rejected.items() if isinstance(v, float))}
                reached |= {(choice.site.kind, s) for s in legal}
    for name in STRATEGIES:
        assert name == "naive" or any(s == name for _, s in reached), f"no sample allows {name}"


def test_a_duplicate_name_raises() -> None:
    with pytest.raises(ConfigError, match="registered already"):
        layer_kind("linear")(object)
    with pytest.raises(ConfigError, match="registered already"):
        strategy("ghost")(object)
