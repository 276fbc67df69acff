"""Recurrent layers and cells: taken apart, every weight is one site over all steps, and equal to
the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import against_the_loop, curved
from torch import Tensor, nn

import fxperex
from fxperex.errors import BatchMixingError, CaptureError
from fxperex.testing import Call

STEPS = 4
EVERY = ("auto", "naive", "multi", "crb", "unfold", "ghost")
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "lstm, two layers and "
    "directions": lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True),
    "lstm, projected": lambda: nn.LSTM(3, 4, 2, batch_first=True, proj_size=2, bidirectional=True),
    "lstm, no bias": lambda: nn.LSTM(3, 4, batch_first=True, bias=False),
    "gru, two layers and directions": lambda: nn.GRU(3, 4, 2, batch_first=True, bidirectional=True),
    "rnn, tanh": lambda: nn.RNN(3, 4, 2, batch_first=True),
    "rnn, relu": lambda: nn.RNN(3, 4, batch_first=True, nonlinearity="relu"),
}


def sequence_first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(0, 1))[0].transpose(0, 1)


def last_state(layer: nn.Module, x: Tensor) -> Tensor:
    h = x[:, 0].new_ones(1, x.shape[0], 4)
    return layer(x, (h, h * 0.5))[1][1].transpose(0, 1)


def stepped(cell: nn.Module, x: Tensor) -> Tensor:
    state: Tensor | tuple[Tensor, Tensor] = x.new_zeros(x.shape[0], 4)
    state = (state, state) if isinstance(cell, nn.LSTMCell) else state
    outs = []
    for t in range(x.shape[1]):
        state = cell(x[:, t], state)
        outs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outs, 1)


LAYERS |= {
    "lstm, sequence first": lambda: Call(sequence_first, nn.LSTM(3, 4)),
    "gru, sequence first": lambda: Call(sequence_first, nn.GRU(3, 4)),
    "lstm, its last state from a "
    "given one": lambda: Call(last_state, nn.LSTM(3, 4, batch_first=True)),
    "lstm cell": lambda: Call(stepped, nn.LSTMCell(3, 4)),
    "gru cell": lambda: Call(stepped, nn.GRUCell(3, 4)),
    "rnn cell": lambda: Call(stepped, nn.RNNCell(3, 4, nonlinearity="relu")),
}


@pytest.mark.parametrize("name", LAYERS)
def test_against_the_loop(name: str) -> None:
    model = LAYERS[name]().double()
    x = torch.randn(3, STEPS, 3, dtype=torch.float64)
    for step in against_the_loop(model, (x, ), EVERY if name in {"lstm", "gru cell"} else
                                 ("auto", "ghost")):
        sites = [c.site for c in step.plan.choices]
        assert len(sites) == len(list(model.parameters()))
        weights = [s for s in sites if len(s.shape) == 2]
        assert all(s.kind == "linear" and s.dims is not None and s.dims.T == STEPS for s in weights)


def test_no_gradient_is_stored_per_step() -> None:
    """Under ghost the step graph holds no tensor as large as one example's weight gradient per
    example.
    """
    model, x = nn.LSTM(6, 20, batch_first=True), torch.randn(3, STEPS, 6)
    private = fxperex.transform(model, (x,), forward=curved, strategy="ghost", backend="eager")
    stored = len(x) * model.weight_hh_l0.numel()
    sizes = [
        n.meta["val"].numel()
        for n in private.step_graph.graph.nodes
        if hasattr(n.meta.get("val"), "numel")
    ]
    assert max(sizes) < stored


def test_the_batch_where_the_steps_belong_is_refused() -> None:
    model = nn.Sequential(nn.LSTM(3, 4))  # not batch_first, fed batch first
    with pytest.raises((BatchMixingError, CaptureError), match="batch_first"):
        fxperex.transform(model, (torch.randn(3, STEPS, 3), ),
                          forward=lambda m, x: m(x)[0].flatten(1).sum(1), backend="eager")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_layers_repeats_under_a_seed(kind: type[nn.Module]) -> None:
    model, x = kind(3, 4, 2, batch_first=True, dropout=0.5), torch.randn(3, STEPS, 3)
    private = fxperex.transform(model, (x,), forward=curved, backend="eager")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(private.step(x).norms)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
