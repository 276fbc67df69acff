"""Every rule's clipped sum against the formula on float64 gradients, and never above what it
declares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxperex
from fxperex.capture.forward import as_forward
from fxperex.clipping import (
    Adaptive,
    Automatic,
    Clip,
    Flat,
    Function,
    Normalised,
    PerGroup,
    PerLayer,
    as_rule,
)
from fxperex.errors import ConfigError
from fxperex.testing import loop

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
X, Y = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)) * torch.logspace(
    -3, 2, 7)[:, None], torch.arange(7) % 3

# Each rule with the group of every parameter and the factor of group k for its norm n.
RULES: list[tuple[Clip, tuple[int, ...], Callable[[float, int], float]]] = [
    (Flat(0.3), (0, 0, 0, 0), lambda n, k: min(1, 0.3 / n)),
    (Automatic(0.3, 0.02), (0, 0, 0, 0), lambda n, k: 0.3 / (n + 0.02)),
    (Normalised(0.3), (0, 0, 0, 0), lambda n, k: 0.3 / n),
    (PerLayer(0.3), (0, 0, 1, 1), lambda n, k: min(1, 0.3 / math.sqrt(2) / n)),
    (PerLayer((0.1, 0.4)), (0, 0, 1, 1), lambda n, k: min(1, (0.1, 0.4)[k] / n)),
    (PerGroup({"*.bias": 0.05, "*": 0.3}), (1, 0, 1, 0), lambda n, k: min(1, (0.05, 0.3)[k] / n)),
    (Function(lambda n: 0.3 / (1 + n * n).sqrt(),
              0.3), (0, 0, 0, 0), lambda n, k: 0.3 / math.sqrt(1 + n * n)),
    (Adaptive(0.2), (0, 0, 0, 0), lambda n, k: min(1 / 0.2, 1 / n)),
]


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.mark.parametrize("strategy", ["auto", "naive"])
@pytest.mark.parametrize(("rule", "groups", "factor"), RULES,
                         ids=[type(r).__name__ for r, _, _ in RULES])
def test_the_step_is_the_formula(rule: Clip, groups: tuple[int, ...],
                                 factor: Callable[[float, int], float], strategy: str) -> None:
    model, batch = _model(), (X.double(), Y)
    truth = loop(model, as_forward(nn.functional.cross_entropy), batch)
    assert rule.groups(NAMES) == groups and list(truth) == NAMES
    squares = torch.zeros(7, max(groups) + 1, dtype=torch.float64)
    for name, k in zip(NAMES, groups, strict=True):
        squares[:, k] += truth[name].reshape(7, -1).square().sum(1)
    factors = torch.tensor(
        [[factor(float(n), k) for k, n in enumerate(row)] for row in squares.sqrt()],
        dtype=torch.float64)
    private = fxperex.transform(model, batch, nn.functional.cross_entropy, clip=rule,
                                strategy=strategy, backend="eager")
    result, sums = private.sums(*batch)
    torch.testing.assert_close(result.factors, factors.squeeze(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.norms, squares.sum(1).sqrt())
    for name, k, total in zip(NAMES, groups, sums, strict=True):
        torch.testing.assert_close(total, torch.einsum("b,b...->...", factors[:, k], truth[name]),
                                   rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [r for r, _, _ in RULES],
                         ids=[type(r).__name__ for r, _, _ in RULES])
def test_no_norm_passes_the_sensitivity(rule: Clip) -> None:
    width = max(rule.groups(NAMES)) + 1
    norms = torch.cat(
        [torch.logspace(-300, 300, 601, dtype=torch.float64),
         torch.tensor([0.0, 5e-324])])
    spread = torch.stack([norms.roll(17 * k) for k in range(width)], 1)
    factors = rule.apply(spread, *rule.inputs())
    assert torch.isfinite(factors).all() and (factors >= 0).all()
    assert ((factors * spread).square().sum(1).sqrt() <= rule.sensitivity * (1 + 1e-15)).all()


def test_a_lying_rule_is_held_to_its_word() -> None:
    class Lying(Clip):
        sensitivity = 0.5

        def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
            return torch.where(norms > 2, torch.full_like(norms, math.nan), norms * 0 + 7)

    norms = torch.tensor([[0.01], [1.0], [3.0]], dtype=torch.float64)
    assert torch.allclose(Lying().apply(norms) * norms,
                          torch.tensor([[0.07], [0.5], [0.0]], dtype=torch.float64))


def test_a_function_that_lies_between_the_norms_it_is_tried_on_is_held_in_the_step() -> None:
    def spike(norm: Tensor) -> Tensor:
        return torch.where((norm > 1.5) & (norm < 1.9), 1e6,
                           0.3 / (1 + norm))  # 1 and 2 are tried, 1.7 is not

    model = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[1.7, 0.0], [0.0, 1.0]], dtype=torch.float64)
    private = fxperex.transform(model, (x, ), forward=lambda m, v: m(v).sum(1),
                                clip=Function(spike, 0.3), backend="eager")
    (total,) = private.sums(x)[1]
    torch.testing.assert_close(total, torch.tensor([[0.3, 0.15]], dtype=torch.float64))


def test_a_rule_sees_one_example() -> None:
    class Peeking(Flat):
        def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
            return norms / norms.max()  # over one example's groups at most

    norms = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    assert torch.equal(Peeking(1.0).apply(norms), Peeking(1.0).apply(norms.flip(0)).flip(0))
    assert torch.equal(Peeking(1.0).apply(norms)[:1], Peeking(1.0).apply(norms[:1]))


def test_adaptive_counts_and_moves() -> None:
    rule = Adaptive(start=2.0, quantile=0.5, rate=0.2)
    assert rule.below(torch.tensor([1.0, 2.0, 3.0, math.inf, math.nan])) == 1 - 1.5
    rule.update(0.9)
    assert rule.bound == pytest.approx(2 * math.exp(-0.08)) and rule.sensitivity == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: Flat(0), "above 0"), (lambda: Flat(math.inf), "finite"),
     (lambda: Flat(True), "number"), (lambda: Automatic(1.0, -1.0), "gamma"),
     (lambda: Normalised(1.0, 1e-30), "at least 1e-10"), (lambda: PerLayer(()), "got none"),
     (lambda: PerLayer((1.0, 0.0)), "above 0"),
     (lambda: PerLayer((1.0, 1.0, 1.0)).groups(NAMES), "3 clip bounds for 2 layers"),
     (lambda: PerGroup({}), "glob"), (lambda: PerGroup({"*": -1.0}), "above 0"),
     (lambda: PerGroup({"*.weight": 1.0}).groups(NAMES), "0.bias"),
     (lambda: PerGroup({"*": 1.0, "*.bias": 1.0}).groups(NAMES), r"only ones that an earlier glob "
                                                                 r"took: '\*.bias'"),
     (lambda: PerGroup({"*": 1.0, "zzz": 1.0}).groups(NAMES), "^clip per group: these globs match "
                                                              "no parameter.*'zzz'"),
     (lambda: Function(lambda n: n * 0 + 1, 1.0), "above its declared bound"),
     (lambda: Function(lambda n: -n, 1.0), "not negative"),
     (lambda: Function(lambda n: 1 / n, 1.0), "finite"),
     (lambda: Function(lambda n: n if n > 1 else n * 0, 1.0), "without branches"),
     (lambda: Function(lambda n: 1.0 / (1 + n), math.nan), "bound"),
     (lambda: Adaptive(quantile=1.0), "quantile"), (lambda: Adaptive(start=-1.0), "start"),
     (lambda: as_rule("1.0"), "clip"), (lambda: as_rule(True), "clip"),
     (lambda: as_rule(None), "clip")])
def test_nonsense_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("join", [torch.add, lambda a, b: torch.cat([a, b])[1:4]])
def test_parameters_that_meet_the_batch_as_one_keep_their_own_norms(
        join: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ join(self.a, self.b).t()

    model, batch = Joined().double(), (X.double(), Y)
    truth = loop(model, as_forward(nn.functional.cross_entropy), batch)
    private = fxperex.transform(model, batch, nn.functional.cross_entropy, backend="eager",
                                clip=PerGroup({"a": 0.1, "b": 0.2}))
    for (name, grads), bound, total in zip(truth.items(), (0.1, 0.2),
                                           private.sums(*batch)[1], strict=True):
        factors = (bound / grads.reshape(7, -1).norm(dim=1)).clamp(max=1.0)
        torch.testing.assert_close(total, torch.einsum("b,b...->...", factors, grads), rtol=1e-9,
                                   atol=1e-12, msg=name)
