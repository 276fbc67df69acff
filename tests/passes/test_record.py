"""The recorder gives `make_fx`'s graphs, node for node, and leaves to it what it cannot follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import fxperex
from fxperex.graph.provenance import MADE, PART
from fxperex.rewrite import trace as tracing
from fxperex.rewrite.record import record

aten = torch.ops.aten


class Attention(nn.Module):
    """A layer with dropout, and one embedding for input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.tokens(x)).mean(1) @ self.tokens.weight.T


def convolutions() -> tuple[nn.Module, Tensor]:
    stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 7))
    return stem, torch.randn(4, 2, 10, 10)


def attention() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.arange(12).reshape(4, 3) % 7


def recurrent() -> tuple[nn.Module, Tensor]:
    class Final(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0][:, -1])

    return Final(), torch.randn(4, 2, 3)


def described(graph: fx.GraphModule) -> Iterator[tuple[object, ...]]:
    """All that later stages read of a graph; memory by the node that makes it."""
    owners: dict[int, str] = {}
    for node in graph.graph.nodes:
        tensors = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
        memory = [owners.setdefault(t.untyped_storage()._cdata, node.name) for t in tensors]
        # An older `make_fx` keeps `detach`, which is `alias` where no gradient is asked for.
        target = aten.alias.default if node.target is aten.detach.default else node.target
        yield (node.op, target, len(node.all_input_nodes), repr(fx.map_arg(node.args, type)),
               [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in tensors],
               len(set(memory)), node.meta.get(MADE), node.meta.get(PART))


@pytest.mark.parametrize(("example", "strategy"), [
    (convolutions, "auto"), (convolutions, "multi"), (convolutions, "vmap"), (attention, "auto"),
    (recurrent, "auto")])
def test_a_step_is_recorded_node_for_node(example: Callable[[], tuple[nn.Module, Tensor]],
                                          strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def both(function: Callable[..., object], inputs: list[Tensor]) -> fx.GraphModule:
        recorded = record(function, inputs)
        assert recorded is not None
        usual = make_fx(function, tracing_mode="real", _allow_non_fake_inputs=True)(*inputs)
        compared.append((list(described(recorded)), list(described(usual))))
        if not any(n.target is aten.detach.default for n in usual.graph.nodes):
            assert str(recorded.graph) == str(usual.graph)
        return recorded

    monkeypatch.setattr(tracing, "record", both)
    model, x = example()
    private = fxperex.transform(model, (x, torch.arange(4)), nn.CrossEntropyLoss(),
                                strategy=strategy, backend="eager")
    assert private.backend == "eager" and len(compared) == 1
    assert compared[0][0] == compared[0][1]


@pytest.mark.parametrize("function", [
    lambda x: x * torch.tensor([1.0, 2.0]),  # a constant
    lambda x: x if x.sum() > 0 else -x,  # a number that is read
    lambda x: x.clone().t_(),  # a view in place
    lambda x: x + OUTSIDE  # a tensor that is no input
])
def test_what_it_cannot_follow_is_left_alone(function: Callable[[Tensor], Tensor]) -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        assert record(function, [fakes.from_tensor(torch.ones(2, 2))]) is None


def test_an_error_of_the_function_is_its_own() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with torch._subclasses.FakeTensorMode() as fakes, pytest.raises(ZeroDivisionError):
        record(fails, [fakes.from_tensor(torch.ones(2))])


OUTSIDE = torch.ones(2)
