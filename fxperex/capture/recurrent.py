"""Recurrent layers taken apart at capture: products with their weights, gates between them.

Before: one `aten.lstm`, whose weights no per-example kernel can reach. After: per layer and
direction one product of all steps' inputs, and per step one product of the hidden state. Uses of
one weight are one site, so the whole sequence is `g_b^T a_b` with T steps as positions: no gradient
is stored per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]  # (input gates, hidden gates, state) -> state
aten = torch.ops.aten


def _lstm(inputs: Tensor, hidden: Tensor, state: State) -> State:
    i, f, g, o = (inputs + hidden).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(inputs: Tensor, hidden: Tensor, state: State) -> State:
    (ri, zi, ni), (rh, zh, nh) = inputs.chunk(3, -1), hidden.chunk(3, -1)
    new = (ni + (ri + rh).sigmoid() * nh).tanh()
    return (new + (zi + zh).sigmoid() * (state[0] - new),)


def _tanh(inputs: Tensor, hidden: Tensor, state: State) -> State:
    return ((inputs + hidden).tanh(),)


def _relu(inputs: Tensor, hidden: Tensor, state: State) -> State:
    return ((inputs + hidden).relu(),)


def _weights(params: list[Tensor], biases: bool,
             projected: bool) -> Iterator[tuple[Tensor | None, ...]]:
    """(w_ih, w_hh, b_ih, b_hh, w_hr) of each layer and direction."""
    size = 2 + 2 * biases + projected
    for i in range(0, len(params), size):
        weights = params[i:i + size]
        yield (*weights[:2], *(weights[2:4] if biases else
                               (None, None)), weights[-1] if projected else None)


def _direction(cell: Cell, x: Tensor, state: State, weights: tuple[Any, ...], time: int,
               back: bool) -> tuple[Tensor, State]:
    """Runs one layer in one direction over dimension `time`; returns outputs and the last state."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    gates = F.linear(x, w_ih, b_ih).unbind(time)
    outs = []
    for step in reversed(gates) if back else gates:
        state = cell(step, F.linear(state[0], w_hh, b_hh), state)
        if w_hr is not None:
            state = (F.linear(state[0], w_hr), *state[1:])
        outs.append(state[0])
    return torch.stack(outs[::-1] if back else outs, time), state


def _layers(cell: Cell) -> Callable[..., Any]:
    """Returns the decomposition of `aten.lstm.input` and its kin."""

    def run(x: Tensor, hx: Any, params: list[Tensor], biases: bool, layers: int, dropout: float,
            train: bool, both: bool, batch_first: bool) -> Any:
        time, starts = 1 if batch_first else 0, [hx] if isinstance(hx, Tensor) else list(hx)
        if not isinstance(x.shape[time], int):
            return NotImplemented  # the batch where the steps belong: the proof says so
        weights = _weights(params, biases, cell is _lstm
                           and starts[0].shape[-1] != starts[1].shape[-1])
        ends: list[State] = []
        for layer in range(layers):
            outs = []
            for back in (False, True)[:1 + both]:
                state = tuple(s.select(0, len(ends)) for s in starts)
                out, state = _direction(cell, x, state, next(weights), time, back)
                outs.append(out)
                ends.append(state)
            x = torch.cat(outs, -1) if both else outs[0]
            x = F.dropout(x, dropout, train) if dropout and layer < layers - 1 else x
        return x, *(torch.stack([state[i] for state in ends]) for i in range(len(starts)))

    return run


def _one(cell: Cell) -> Callable[..., Any]:
    """Returns the decomposition of `aten.lstm_cell` and its kin."""

    def run(x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None,
            b_hh: Tensor | None = None) -> Any:
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        output = cell(F.linear(x, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
        return output if len(output) > 1 else output[0]

    return run


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _layers(_lstm),
    aten.gru.input: _layers(_gru),
    aten.rnn_tanh.input: _layers(_tanh),
    aten.rnn_relu.input: _layers(_relu),
    aten.lstm_cell.default: _one(_lstm),
    aten.gru_cell.default: _one(_gru),
    aten.rnn_tanh_cell.default: _one(_tanh),
    aten.rnn_relu_cell.default: _one(_relu),
}
