"""The passes that take out what does nothing: fewer operations, the same bits, and what must stay
stays.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxperex
from fxperex.graph.strides import forget_strides
from fxperex.rewrite import rewriter
from fxperex.rewrite.passes import PASSES, join_views, remove_redundant
from fxperex.rewrite.passes.remove_redundant import SMALL
from fxperex.strategies import stored


def _trace(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    graph = make_fx(function, tracing_mode="fake")(*inputs)
    forget_strides(graph)
    return graph


def _count(graph: fx.GraphModule, name: str = "") -> int:
    return sum(n.op == "call_function" and name in str(n.target) for n in graph.graph.nodes)


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.GELU(),
                         nn.Conv2d(8, 8, 3, groups=2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(72, 10))


@pytest.mark.parametrize("strategy", ["auto", "unfold", "crb", "ghost", "vmap"])
def test_the_step_has_fewer_operations_and_the_same_bits(strategy: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = _convolutions(), torch.randn(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])

    def step() -> tuple[list[Tensor], int]:
        model.zero_grad()
        private = fxperex.transform(model, (x, y), nn.CrossEntropyLoss(), strategy=strategy,
                                    backend="eager")
        result = private.step(x, y)
        return [result.norms, *(p.grad for p in model.parameters() if p.grad is not None)
                ], _count(private.step_graph)

    made, few = step()
    untidy = [p for p in PASSES if p.name not in ("join_views", "remove_redundant")]
    monkeypatch.setattr(rewriter, "PASSES", untidy)
    want, many = step()
    assert few < 0.75 * many
    assert len(made) == len(want) == 9 and all(
        torch.equal(a, b) for a, b in zip(made, want, strict=True))


def test_small_sites_share_one_norm_and_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = _convolutions().double(), torch.randn(
        4, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 2, 3, 4])

    def step() -> list[Tensor]:
        model.zero_grad()
        private = fxperex.transform(model, (x, y), nn.CrossEntropyLoss(), strategy="unfold",
                                    backend="eager", clip=0.1)
        sums = _count(private.step_graph, "aten.mv")
        assert sums == (8 if stored.SMALL == 0 else 1)
        return [
            private.step(x, y).norms, *(p.grad for p in model.parameters() if p.grad is not None)
        ]

    together = step()
    assert len({t.untyped_storage().data_ptr()
                for t in together}) == len(together), "no gradient is part of another's memory"
    monkeypatch.setattr(stored, "SMALL", 0)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(together, step(), strict=True))


class Twins(nn.Module):
    """Two biases that receive the same gradient: too large to lie beside others, their sums small
    enough to be formed once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(4, 8000), nn.Parameter(
            torch.zeros(8000)), nn.Parameter(torch.zeros(8000))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x) + self.one + self.two)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_equal_results_stay_two_tensors(backend: str) -> None:
    model, x = Twins(), torch.randn(3, 4)
    private = fxperex.transform(model, (x, ), forward=lambda m, v: m(v).square().sum(1),
                                backend=backend)
    private.step(x)
    assert model.one.grad is not None and model.two.grad is not None and torch.equal(
        model.one.grad, model.two.grad)
    assert model.one.grad.data_ptr() != model.two.grad.data_ptr()

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.sum(0), x.sum(0), x.sum(0).reshape(2, 2) + 1

    assert stored.SMALL < 3 * 8000 * 4 and SMALL >= 8000 * 4
    graph = _trace(run, x)
    remove_redundant(graph)
    one, two, _ = graph(x)
    assert one.data_ptr() != two.data_ptr()


def test_random_draws_and_written_memory_keep_their_operations() -> None:
    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        draws = torch.rand_like(x) - torch.rand_like(x)
        before = x + 1
        total = x * 2
        first = total + 1
        total.add_(1)
        return draws + 0, before + 0, (total + 1) - first

    graph, x = _trace(run, torch.randn(3, 4)), torch.randn(3, 4)
    remove_redundant(graph)
    assert bool((graph(x)[0] != 0).any()) and torch.allclose(graph(x)[2], torch.ones(3, 4))
    assert _count(graph, "rand_like") == 2


def test_views_of_written_memory_stay_where_they_are() -> None:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        total = x * 2
        seen = total.reshape(2, 3, 2).reshape(12)
        total.add_(1)
        return seen + 0, x.reshape(2, 3, 2).reshape(12) + 0

    graph, x = _trace(run, torch.randn(3, 4)), torch.randn(3, 4)
    assert join_views(graph) == 1
    assert torch.equal(graph(x)[0],
                       (x * 2 + 1).reshape(12)) and torch.equal(graph(x)[1], x.reshape(12))


def test_what_is_formed_twice_is_formed_once_where_it_is_small() -> None:
    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * 2).exp() + (x * 2).sin() + (x * 2.0).cos(), (y * 2).exp() + (y * 2).sin()

    graph = _trace(run, torch.randn(3), torch.randn(2**15))
    assert remove_redundant(graph) == 1  # 2 and 2.0 are not the same argument
    assert _count(graph, "mul") == 4


VIEWS: tuple[Callable[[Tensor, random.Random], Tensor], ...] = (
    lambda x, draw: x.reshape(
        draw.choice([(-1, ), (x.shape[0], -1), (1, -1, x.shape[-1]), (*x.shape, 1)])),
    lambda x, draw: x.permute(draw.sample(range(x.dim()), x.dim())),
    lambda x, draw: x.unsqueeze(draw.randrange(x.dim())),
    lambda x, draw: x.transpose(draw.randrange(x.dim()), draw.randrange(x.dim())),
    lambda x, draw: x.squeeze(draw.randrange(x.dim())),
    lambda x, draw: x + 1,
)


@pytest.mark.parametrize("seed", range(40))
def test_chains_of_views_are_the_same_values(seed: int) -> None:
    def run(x: Tensor) -> list[Tensor]:
        draw, made = random.Random(seed), [x]
        for _ in range(12):
            source = made[-1] if draw.random() < 0.8 else draw.choice(made)
            made.append(draw.choice(VIEWS)(source, draw) if source.dim() else source + 1)
        return [v + 1 for v in made[6:]]

    graph, x = _trace(run, torch.randn(2, 1, 3, 4)), torch.randn(2, 1, 3, 4)
    before = _count(graph)
    join_views(graph)
    assert _count(graph) <= before
    for made, want in zip(graph(x), run(x), strict=True):
        assert made.shape == want.shape and torch.equal(made, want)


def test_a_chain_that_comes_back_is_gone() -> None:
    def run(x: Tensor) -> Tensor:
        y = x.reshape(1, 2, 1, 1, 3, 4).permute(1, 3, 4, 0, 2, 5).reshape(2, 1, 3, 4)
        return y.transpose(2, 3).transpose(2, 3).reshape(2, 3, 4) + 1

    graph = _trace(run, torch.randn(2, 3, 4))
    join_views(graph)
    remove_redundant(graph)
    assert [str(n.target) for n in graph.graph.nodes if n.op == "call_function"
            ] == ["aten.add.Tensor"]
