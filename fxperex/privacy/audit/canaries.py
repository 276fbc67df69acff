"""The examples that an attack tries to find: each the worst of one kind, in a model of at most 50
parameters.

Losses are linear in the parameters, so a row's gradient is the same at every step and is known
beforehand: `loss = sum_t <W x_t + b, y_t>` has gradients `sum_t y_t x_t^T` and `sum_t y_t`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxperex.testing import loop

INPUTS, OUTPUTS, TOKENS, PUBLIC = 5, 4, 16, 3
HUGE = 1e6  # a gradient's norm against a clip bound of 1
Rows = tuple[Tensor, Tensor]


class Tied(nn.Module):
    """One weight used as it is and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(OUTPUTS, INPUTS))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        straight = nn.functional.linear(x, self.weight) * y
        transposed = nn.functional.linear(y, self.weight.t()) * x
        return straight.sum(1) + transposed.sum(1)


class Affine(nn.Module):
    """A linear layer over any number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.layer(x) * y).flatten(1).sum(1)


@dataclass(frozen=True)
class Canary:
    """name, and what it tries. model: returns a model whose loss(x, y) is `[B]`. row: the canary.
    public: the other rows.

    strategy: the plan's. adds: False for a row without a finite gradient, which must add nothing.
    """

    name: str
    what: str
    model: Callable[[], nn.Module]
    row: Callable[[], Rows]
    public: Callable[[], Rows]
    strategy: str = "auto"
    adds: bool = True

    def direction(self) -> list[Tensor]:
        """Returns the unit vector, by parameter, along which the canary moves the sum; some unit
        vector if it must not.
        """
        gradients = loop(self.model(), lambda m, x, y: m(x, y), self.row())
        grads = [g[0].nan_to_num() for g in gradients.values()]
        length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        if not length > 0:
            size = sum(g.numel() for g in grads)
            return [torch.full_like(g, size**-0.5) for g in grads]
        return [g / length for g in grads]


def _rows(*shape: int) -> Rows:
    """Returns ordinary rows. They have no part along most canaries' directions, as that would only
    blur the attack.
    """
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(PUBLIC, *shape, INPUTS, generator=draw)
    y = torch.randn(PUBLIC, *shape, OUTPUTS, generator=draw)
    x[..., 0] = y[..., 0] = 0.0
    return x, y


def _public() -> Rows:
    return _rows()


def _tokens() -> Rows:
    return _rows(TOKENS)


def _weight() -> Rows:
    return HUGE * torch.eye(INPUTS)[:1], torch.eye(OUTPUTS)[:1]


def _bias() -> Rows:
    return torch.zeros(1, INPUTS), HUGE * torch.eye(OUTPUTS)[:1]


def _duplicate() -> Rows:
    x, y = _public()
    return x[:1], y[:1]


def _nan() -> Rows:
    return torch.full((1, INPUTS), torch.nan), torch.ones(1, OUTPUTS)


def _cancelling() -> Rows:
    """Returns tokens of length 1e3 that cancel, except for a gradient of norm 5."""
    x, y = torch.zeros(1, TOKENS, INPUTS), torch.zeros(1, TOKENS, OUTPUTS)
    x[..., 0], y[..., 0] = 1e3, 1.0
    y[:, 1::2, 0] = -1.0
    x[..., 1] = 5.0 / TOKENS * y[..., 0]
    return x, y


def _tied() -> Rows:
    return torch.eye(INPUTS)[:1], torch.eye(OUTPUTS)[:1]


CANARIES = {c.name: c for c in (
    Canary("dirac weight", "a gradient of norm 1e6 in one entry of the weight",
           Affine, _weight, _public),
    Canary("dirac bias", "a gradient of norm 1e6 in one entry of the last parameter",
           Affine, _bias, _public),
    Canary("duplicate", "a second copy of a public row", Affine, _duplicate, _public),
    Canary("not a number", "a row without a finite gradient, which must count as absent",
           Affine, _nan, _public, adds=False),
    Canary("cancelling", "tokens whose Gram form cancels to a small norm",
           Affine, _cancelling, _tokens, "ghost"),
    Canary("tied", "one weight used twice, whose norm is that of the sum",
           Tied, _tied, _public, "ghost"))}
