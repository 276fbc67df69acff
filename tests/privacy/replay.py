"""Neighbouring data sets with an adversarial row, and how far apart the sums are that a step
releases of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxperex.runtime.module import PerExampleModule

ROWS = 4  # of a physical batch
TINY = {torch.float64: 1e-310, torch.float32: 1e-40, torch.bfloat16: 1e-40, torch.float16: 1e-6}
Batch = tuple[Tensor, ...]
Make = Callable[[], nn.Module]


class Tokens(nn.Module):
    """Embedding and output layer of one table, positions in between."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.norm = nn.Embedding(6, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.norm(self.mix(self.table(ids) * x).tanh() + x) @ self.table.weight.t()


class Turned(nn.Module):
    """Weights that meet the batch through views: transposed, chunked, expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.shift = nn.Parameter(torch.randn(16, 8) / 3), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        first, second = self.both.chunk(2)
        return ((x @ first.t()).tanh() @ second + self.shift.expand(x.shape[0], x.shape[1], 8))


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(),
                                 nn.Conv2d(4, 4, 2, stride=2))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.net(x.reshape(-1, 2, 4, 4)).flatten(2).transpose(1, 2)


class Plain(nn.Module):
    """T = 1; a row of 1e30 reaches the first layer as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 8), nn.Softsign(), nn.Linear(8, 5))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.net(x.flatten(1))[:, None]


MODELS: dict[str, Make] = {"plain": Plain, "image": Image, "tokens": Tokens, "turned": Turned}


def loss(model: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
    out = model(x, ids)
    out = out if out.dtype == torch.float64 else out.float()
    target = ids[:, :1].expand(out.shape[:2]) % out.shape[2]
    return F.cross_entropy(out.transpose(1, 2), target, reduction="none").sum(1) + 3 * out.mean(
        (1, 2))


def batch(rows: int, dtype: torch.dtype, seed: int = 0) -> Batch:
    """`rows` ordinary examples `x [rows, T=4, D=8]`, `ids [rows, T]`."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, 8,
                       generator=draw).to(dtype), torch.randint(6, (rows, 4), generator=draw)


def adversaries(dtype: torch.dtype, seed: int = 0) -> dict[str, Batch]:
    """One row of every kind."""
    x, ids = batch(3, dtype, seed)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=dtype)[:, None]
    same = torch.zeros_like(ids[:1])
    one = torch.full_like(x[:1], math.nan)
    made = {
        "zero": torch.zeros_like(one),
        "1e30": 1e30 * x[:1],
        "1e15": 1e15 * x[:1],
        "1e-30": 1e-30 * x[:1],
        "denormal": TINY[dtype] * x[:1].sign(),
        "inf": torch.where(x[:1] > 1, math.inf, x[:1]),
        "nan": one,
        "one nan": torch.where(x[:1] == x[0, 1, 2], math.nan, x[:1]),
        "ordinary": x[2:],
        "long": 50 * x[1:2],
    }
    rows = {kind: (value.to(dtype), ids[:1]) for kind, value in made.items()}
    for spread in (1e-1, 1e-4):
        rows[f"cancelling {spread}"] = ((30 * (signs * x[:1, :1] + spread * x[1:2])).to(dtype),
                                        same)
    rows["duplicate"] = tuple(v[1:2] for v in batch(ROWS, dtype, seed))
    return rows


def neighbours(dtype: torch.dtype, seed: int = 0) -> Iterator[tuple[str, str, Batch, Batch, int]]:
    """Yields (relation, kind of row, data, neighbouring data, in how many sensitivities they may
    differ).
    """
    base, rows = batch(ROWS, dtype, seed), adversaries(dtype, seed)
    kinds = list(rows)
    for number, kind in enumerate(kinds):
        row, at = rows[kind], (number + seed) % ROWS
        other = rows[kinds[(number + 1 + seed) % len(kinds)]]
        yield "add", kind, base, joined(base, row), 1
        yield "add to none", kind, taken(base, 0, 0), row, 1
        yield "remove", kind, swapped(base, row, at), joined(taken(base, 0, at),
                                                             taken(base, at + 1, ROWS)), 1
        yield "replace", kind, swapped(base, row, at), swapped(base, other, at), 2
        yield "zero-out", kind, swapped(base, row, at), swapped(base, rows["nan"], at), 1


RELATIONS = ("add", "add to none", "remove", "replace", "zero-out")


def taken(data: Batch, first: int, last: int) -> Batch:
    return tuple(v[first:last] for v in data)


def joined(*parts: Batch) -> Batch:
    return tuple(torch.cat(v) for v in zip(*parts, strict=True))


def swapped(data: Batch, row: Batch, at: int) -> Batch:
    return joined(taken(data, 0, at), row, taken(data, at + 1, len(data[0])))


def shares(private: PerExampleModule, data: Batch, other: Batch) -> dict[str, float]:
    """Squared L2 distance of the two released sums by parameter, in float64 whatever they were
    formed in.
    """
    sums, others = private.sums(*data)[1], private.sums(*other)[1]
    return {name: float((a.double() - b.double()).square().sum())
            for name, a, b in zip(private.parameters, sums, others, strict=True)}
