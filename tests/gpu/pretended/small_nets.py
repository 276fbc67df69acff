"""Six small models on the meta device, one for each way in which a step meets a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS, LENGTH, WIDTH, TOKENS = 4, 16, 32, 48
Case = tuple[nn.Module, tuple[Tensor, ...]]


def conv() -> nn.Module:
    """Two convolutions, which lie in channels last on a GPU, around a group norm."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(2, 16), nn.ReLU(),
                         nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 64, 8))


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.GroupNorm(2, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
        nn.Flatten(),
        nn.Linear(16 * 64, 8),
    )


class Attention(nn.Module):
    """One pre-norm block with causal attention, classified at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.before_mixing, self.before_maps = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before_mixing(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return (x + self.down(F.gelu(self.up(self.before_maps(x))))).transpose(1, 2)


class Embedded(nn.Module):
    """Token and place embeddings, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = (
            nn.Embedding(TOKENS, WIDTH),
            nn.Parameter(torch.zeros(LENGTH, WIDTH)),
        )
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.tokens(ids) + self.places).tanh().mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(WIDTH, 16, batch_first=True), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Tied(nn.Module):
    """A language model whose table of tokens is its last linear map as well."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mix, self.norm = (
            nn.Embedding(TOKENS, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.LayerNorm(WIDTH),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(
            self.norm(F.gelu(self.mix(self.tokens(ids)))), self.tokens.weight
        ).transpose(1, 2)


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.empty(ROWS, *shape)


def ids() -> Tensor:
    return torch.zeros(ROWS, LENGTH, dtype=torch.int64)


# Model, its input, number of targets an example, norm layers.
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], tuple[int, ...], int]] = {
    "conv": (conv, numbers(3, 8, 8), (), 1),
    "depthwise": (depthwise, numbers(3, 8, 8), (), 1),
    "attention": (Attention, numbers(LENGTH, WIDTH), (LENGTH,), 2),
    "embedding": (Embedded, ids, (), 0),
    "lstm": (Recurrent, numbers(3, WIDTH), (), 0),
    "tied": (Tied, ids, (LENGTH,), 1),
}


def case(name: str) -> Case:
    """Returns (model, batch) of a net; its loss is the cross entropy."""
    make, inputs, targets, _ = NETS[name]
    with torch.device("meta"):
        return make(), (inputs(), torch.zeros(ROWS, *targets, dtype=torch.int64))
