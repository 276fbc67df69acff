"""Programs made free of writes without tracing compute what the user's code computes, and are the
programs that tracing gives.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxperex.capture import export, functionalise, program
from fxperex.errors import FxperexError

ROWS, WIDTH = 4, 6
STEPS = {
    "relu_": lambda x, y: x.relu_(),
    "add_": lambda x, y: x.add_(y),
    "mul_": lambda x, y: x.mul_(0.5),
    "tanh": lambda x, y: x.tanh(),
    "add": lambda x, y: x + y,
    "view": lambda x, y: x.view(-1, 2, 3).transpose(1, 2).reshape(-1, WIDTH),
    "flatten": lambda x, y: x.flatten(0),
    "merged": lambda x, y: x.view(-1, 2, 3).flatten(0, 1).reshape(-1, WIDTH),
    "unflatten": lambda x, y: x.reshape(-1, WIDTH),
    "contiguous": lambda x, y: x.contiguous(),
    "to itself": lambda x, y: x.to(torch.float64),
    "there and back": lambda x, y: x.float().double(),
    "dropout": lambda x, y: nn.functional.dropout(x, 0.5, False),
    "detached": lambda x, y: x + y.detach(),
    "clone": lambda x, y: x.clone(),
    "half": lambda x, y: torch.cat([x[..., :3] * 2, x[..., 3:]], -1),
    "row written": lambda x, y: x.select(-1, 0).add_(1.0),
    "slice written": lambda x, y: x[..., 2:].mul_(2.0),
    "same": lambda x, y: x,
}


class Written(nn.Module):
    """A random program over a pool of tensors, of which some are views of others and some are
    written into.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64) / 3)
        draw = random.Random(seed)
        self.steps = [(draw.choice(list(STEPS)), draw.random(), draw.random())
                      for _ in range(draw.randint(1, 7))]

    def forward(self, x: Tensor) -> Tensor:
        pool = [x @ self.weight, nn.functional.linear(x, self.weight)]
        for name, first, second in self.steps:
            one, two = (pool[int(place * len(pool))] for place in (first, second))
            if one.shape != two.shape:
                two = one
            pool.append(STEPS[name](one, two))
        whole = [p.reshape(len(x), WIDTH) for p in pool if p.numel() == x.numel()]
        return torch.stack([p.sin().sum(1) for p in whole]).sum(0)


def eager(model: Written, x: Tensor) -> tuple[Tensor, Tensor]:
    loss = model(x)
    return loss.detach(), torch.autograd.grad(loss.square().sum(), model.weight)[0]


def captured(model: Written, x: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and gradient of the captured program."""
    capture = program.capture(model, lambda m, x: m(x), (x,), ROWS)
    values = {"parameter": lambda key: dict(model.named_parameters())[key],
              "batch": lambda key: x, "constant": capture.constants.__getitem__}
    arguments = [values[kind](key) for kind, key in capture.inputs.values()]
    result = fx.Interpreter(capture.main.graph).run(*arguments)
    loss = result[0] if isinstance(result, tuple | list) else result
    return loss.detach(), torch.autograd.grad(loss.square().sum(), model.weight)[0]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[bool, int]:
    """How many programs were rewritten (True) and traced (False)."""
    counts = {True: 0, False: 0}

    def counting(graph: fx.GraphModule, apart: Any) -> bool:
        result = functionalise.functionalise(graph, apart)
        counts[result] += 1
        return result

    monkeypatch.setattr(export, "functionalise", counting)
    return counts


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 1500),
                                                           marks=pytest.mark.nightly)])
def test_programs_that_write_compute_what_the_user_wrote(seeds: range,
                                                         counted: dict[bool, int]) -> None:
    torch.manual_seed(0)
    x, refused = torch.randn(ROWS, WIDTH, dtype=torch.float64), 0
    for seed in seeds:
        model = Written(seed)
        try:
            expected = eager(model, x)
        except RuntimeError:  # writes into what the backward needs: no program at all
            continue
        try:
            results = captured(model, x)
        except FxperexError:
            refused += 1
            continue
        for name, a, b in zip(("loss", "gradient"), results, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12), (name, seed, model.steps)
    assert counted[True] >= len(seeds) // 5 and counted[False] >= len(seeds) // 10
    assert refused <= len(seeds) // 5


class Everyday(nn.Module):
    """What most models do: writes into activations, reshapes, conversions, dropout switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(16, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.relu_(self.conv(x))
        h = nn.functional.hardswish(h, inplace=True)
        h += h.mean((2, 3), keepdim=True)
        h = self.drop(h.contiguous().to(x.dtype)).flatten(1)
        return self.head(h).float()


def operations(graph: fx.GraphModule) -> list[tuple[str, Any]]:
    return [(str(n.target), tuple(n.meta["val"].shape)) for n in graph.graph.nodes
            if n.op == "call_function" and isinstance(n.meta["val"], Tensor)
            and n.target is not torch.ops.aten.clone.default]


def test_the_program_is_the_one_that_tracing_gives(monkeypatch: pytest.MonkeyPatch,
                                                   counted: dict[bool, int]) -> None:
    model, batch = Everyday().eval(), (torch.randn(3, 2, 4, 4), torch.randint(3, (3,)))

    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(m(x), y)

    quick = program.capture(model, forward, batch, 3)
    assert counted == {True: 1, False: 0}
    monkeypatch.setattr(export, "functionalise", lambda *_: False)
    traced = program.capture(model, forward, batch, 3)
    assert operations(quick.main.graph) == operations(traced.main.graph)
    assert quick.symbolic and quick.inputs == traced.inputs


@pytest.mark.parametrize("write", [
    lambda x, w: x.view(-1).relu_().view_as(x) + x, lambda x, w: w.relu_() + x,
    lambda x, w: (x + w).split(2, 1)[0].relu_(),
    lambda x, w: (lambda h: (h[:, :2], h.relu_()))(x + w)[0]],
    ids=["the input", "a parameter", "a part", "below a view"])
def test_writes_that_others_see_are_left_to_the_tracer(write: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return write(x, self.w).sum(1)

    exported = torch.export.export(Model(), (torch.randn(3, 4),), strict=False)
    before = str(exported.graph_module.graph)
    assert not functionalise.functionalise(exported.graph_module, ())
    assert str(exported.graph_module.graph) == before
