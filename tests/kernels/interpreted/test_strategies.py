"""The Triton strategies over every sample of the kinds they serve, against the float64 loop."""

from __future__ import annotations

import copy

import pytest
import torch
from support import against_the_loop, curved
from torch import Tensor, nn

import fxperex
from fxperex.registry import kinds
from fxperex.testing import Call, error

KINDS = kinds()
MERGED = Call(lambda m, x: m(x.flatten(0, 1)).unflatten(0, (-1, 2)), nn.GroupNorm(2, 4))
PRODUCT = ("fused", "fused_stored", "ghost")
NAMES = {
    "linear": PRODUCT, "conv": PRODUCT, "conv_transpose": PRODUCT, "bilinear": PRODUCT,
    "norm": ("affine", ), "embedding": ("ghost", )
}
CASES: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = [
    (kind, *sample) for kind in NAMES for sample in KINDS[kind].samples()]
CASES += [("norm", nn.RMSNorm((4, 5), eps=0.3), (torch.randn(3, 2, 4, 5), )),
          ("norm", MERGED, (torch.randn(3, 2, 4, 5), )),
          ("norm", nn.GroupNorm(2, 4), (torch.randn(3, 4), ))]


# A convolution's samples differ in geometry most of all; every third of them is tried ordinarily.
NIGHTLY = [i for i, case in enumerate(CASES) if case[0].startswith("conv") and i % 3]


@pytest.mark.parametrize(("kind", "model", "batch"), [
    pytest.param(*case, id=f"{case[0]}-{i}", marks=pytest.mark.nightly if i in NIGHTLY else ())
    for i, case in enumerate(CASES)])
def test_against_the_loop(kind: str, model: nn.Module, batch: tuple[Tensor, ...]) -> None:
    torch.manual_seed(3)
    against_the_loop(copy.deepcopy(model), batch, NAMES[kind])


def test_the_samples_reach_the_strategies() -> None:
    for name, (_, model, batch) in zip(("fused", "affine"), (CASES[0], CASES[-1]), strict=True):
        private = fxperex.transform(model, batch, forward=curved, strategy=name, backend="eager")
        assert name in {c.strategy for c in private.plan.choices}
        assert "fxperex." in private.step_graph.print_readable(print_output=False)


def test_auto_never_plans_on_the_interpreter() -> None:
    x = torch.randn(3, 3, 6, 6)
    private = fxperex.transform(nn.Conv2d(3, 4, 3), (x,), forward=curved, backend="eager")
    assert not {c.strategy for c in private.plan.choices} & {"fused", "fused_stored", "affine"}


@pytest.mark.parametrize("name", ["fused", "fused_stored"])
def test_cancelling_tokens_stay_within_the_bound(name: str) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    x = signs * torch.randn(1, 1, 32) + 1e-3 * torch.randn(1, 64, 32)
    model, weights = nn.Linear(32, 16, bias=False), torch.randn(16)
    fxperex.transform(model, (x, ), forward=lambda m, v: 1e3 * (m(v) * weights).sum((1, 2)),
                      strategy=name, backend="eager").step(x)
    assert model.weight.grad is not None and float(
        model.weight.grad.double().norm()) <= 1 + 2.0**-20


def test_one_pass_serves_every_norm_with_statistics_of_its_own() -> None:
    for model, x in ((nn.LayerNorm(5), (3, 4, 5)), (nn.RMSNorm(5), (3, 4, 5)),
                     (nn.GroupNorm(2, 4), (3, 4, 5)), (nn.InstanceNorm1d(4,
                                                                         affine=True), (3, 4, 5)),
                     (nn.BatchNorm1d(4).eval(), (3, 4, 5))):
        private = fxperex.transform(model, (torch.randn(x), ), forward=curved, strategy="affine",
                                    backend="eager")
        assert {c.strategy for c in private.plan.choices} == {"affine"}, model


def test_an_eps_that_is_not_given_is_that_of_the_computation() -> None:
    """Short inputs, where it matters; the loop in float64 has another, so the layer's own formula
    is the truth.
    """
    model, x = nn.RMSNorm(5), 1e-3 * torch.randn(3, 4, 5)
    one, other = (fxperex.transform(model, (x, ), forward=curved, strategy=name,
                                    backend="eager").step(x).norms for name in ("affine", "direct"))
    assert error(one, other) <= 1e-6


@pytest.mark.filterwarnings("ignore:invalid value "
                            "encountered:RuntimeWarning")  # numpy, inside the interpreter
def test_an_example_that_is_not_finite_adds_nothing() -> None:
    for name in ("fused", "fused_stored"):
        model, x = nn.Linear(5, 3), torch.randn(4, 6, 5)
        private = fxperex.transform(model, (x,), forward=curved, strategy=name, backend="eager")
        private.step(x[1:])
        want = model.weight.grad.clone()  # type: ignore[union-attr]
        model.zero_grad()
        x[0, 2, 1] = float("inf")
        assert private.step(x).dropped == 1
        assert error(model.weight.grad, want) <= 1e-6  # type: ignore[arg-type]
