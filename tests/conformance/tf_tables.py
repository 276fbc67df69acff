"""The tables of the layer tests of TensorFlow Privacy's fast gradient clipping, their numbers as
torch modules.

That package needs TensorFlow, so the tables are re-typed: 26 einsum layers, 14 axes of a layer
normalisation, 8 sets of embedding ids (bags of one and two ids, some empty, with their mean scored
by a dense layer), 7 attention layers. Inputs are their consecutive numbers, scaled to order one.
Attention with dropout is taken in evaluation mode: a draw of its own for every example has no
reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn

EINSUM: list[tuple[str, list[int], list[int], str]] = [
    ("ab,bc->ac", [2], [3], ""), ("ab,bc->ac", [2], [3], "c"),
    *(("abc,cd->abd", [2, 3], [2, 4], axes) for axes in ("", "b", "d", "bd")),
    *(("abc,cef->abef", [2, 3], [2, 4, 5], axes) for axes in ("", "bf")),
    *(("...b,bc->...c", [2, 3], [4], axes) for axes in ("", "c")),
    ("...ab,bc->...ac", [2, 3], [2, 4], ""), ("...ab,bc->...ac", [2, 4], [2, 4], "c"),
    *(("...abc,cd->...abd", [2, 3, 4], [2, 3, 5], axes) for axes in ("", "b", "d", "bd")),
    *(("...abc,cef->...abef", [2, 3, 4], [2, 3, 5, 6], axes) for axes in ("", "bf")),
    *(("ab...,bc->ac...", [2, 3], [4, 3], axes) for axes in ("", "c")),
    *(("abc...,cd->abd...", [2, 3, 4], [2, 5, 4], axes) for axes in ("", "b", "d", "bd")),
    *(("abc...,cef->abef...", [2, 3, 4], [2, 5, 6, 4], axes) for axes in ("", "bf"))]

NORM: list[tuple[list[int], list[int]]] = [
    ([3], [-1]), ([3], [1]), *(([3, 4], axes) for axes in ([-1], [1], [2], [1, 2])),
    *(([3, 4, 5], axes) for axes in ([-1], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]))]

IDS: list[list[list[int]]] = [
    [[0, 1]], [[0, 1], [1, 1], [0, 0]], [[0], [1], [], [0, 0], [0, 1], [1, 0], [1, 1]],
    [[0], [1], [], [0, 0], [0, 1], [1, 0], [1, 1], [0, 1]]]

# (separate key, mask, heads, bias, dropout, output size or None for the query's)
ATTENTION: list[tuple[bool, bool, int, bool, float,
                      int | None]] = [(False, False, 2, True, 0.0, None),
                                      (True, False, 2, True, 0.0, None),
                                      (False, False, 2, False, 0.0, None),
                                      (False, False, 2, True, 0.1, None),
                                      (False, False, 2, True, 0.0, 3),
                                      (False, False, 1, True, 0.0, 3),
                                      (False, True, 2, True, 0.0, None)]


def counted(*shape: int) -> Tensor:
    """The numbers 0, 1, 2, ... in `shape`, scaled to at most 2 in an example."""
    return 2.0 * torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape) / math.prod(
        shape[1:])


def _full(term: str, rank: int) -> str:
    """`term` with a letter for each dimension that its ellipsis stands for."""
    return term.replace("...", "xyz"[:rank - len(term) + 3])


class Einsum(nn.Module):
    """A dense layer by equation, its bias over the output axes that `axes` names."""

    def __init__(self, equation: str, inputs: list[int], outputs: list[int], axes: str) -> None:
        super().__init__()
        self.equation = equation
        (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
        left, out = _full(left, len(inputs) + 1), _full(out, len(outputs) + 1)
        sizes = dict(zip(left, [1, *inputs], strict=True)) | dict(
            zip(out, [1, *outputs], strict=True))
        self.kernel = nn.Parameter(0.5 * torch.randn([sizes[s] for s in right]))
        self.bias = nn.Parameter(0.5 * torch.randn([sizes[s] if s in axes else 1
                                                    for s in out[1:]])) if axes else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum(self.equation, x, self.kernel)
        return y if self.bias is None else y + self.bias


class Norm(nn.Module):
    """Layer normalisation over `axes` of `[B, *dims]`, neighbours or not."""

    def __init__(self, dims: list[int], axes: list[int]) -> None:
        super().__init__()
        self.axes = axes
        shape = [dims[a - 1 if a > 0 else a] for a in axes]
        self.weight, self.bias = (nn.Parameter(torch.randn(shape)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        last = list(range(-len(self.axes), 0))
        y = F.layer_norm(x.movedim(self.axes, last), self.weight.shape, self.weight, self.bias)
        return y.movedim(last, self.axes)


class Bags(nn.Module):
    """A dense score of the mean embedding of an example's ids; -1 fills a shorter bag up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.score = nn.Embedding(2, 2), nn.Linear(2, 2)

    def forward(self, ids: Tensor) -> Tensor:
        kept = (ids >= 0).to(self.table.weight.dtype)[..., None]
        found = self.table(ids.clamp(min=0)) * kept
        return self.score(found.flatten(1, -2).sum(1) / kept.flatten(1, -2).sum(1).clamp(min=1.0))


class Dense(nn.Module):
    """A product by `equation` with a kernel of `shape`, and a bias over the last `kept` of its
    dimensions.
    """

    def __init__(self, equation: str, shape: list[int], kept: int, bias: bool) -> None:
        super().__init__()
        self.equation, self.weight = equation, nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(shape[-kept:])) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum(self.equation, x, self.weight)
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    """Queries `[B,2,3]` over values `[B,3,4]`: heads of size 2 (values 3), products by einsum as
    the layer's own are.
    """

    def __init__(self, heads: int, bias: bool, dropout: float, outputs: int | None) -> None:
        super().__init__()
        self.query, self.key, self.value = (Dense("btd,dhk->bthk", [d, heads, k], 2, bias)
                                            for d, k in ((3, 2), (4, 2), (4, 3)))
        self.out = Dense("bthk,hkd->btd", [heads, 3, outputs or 3], 1, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, value: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        scores = torch.einsum("bthk,bshk->bhts", self.query(query), self.key(key)) / math.sqrt(2)
        shares = self.dropout(scores.masked_fill(~mask[:, None], -1e9).softmax(-1))
        return self.out(torch.einsum("bhts,bshk->bthk", shares, self.value(value)))


def _einsum() -> list[Case]:
    return [
        Case("einsum", Einsum(*row), (counted(4, *row[1]), ), note=f"{row[0]} {row[3]}")
        for row in EINSUM
    ]


def _norm() -> list[Case]:
    return [
        Case("layer norm", Norm(dims, axes), (counted(6, *dims).sin(), ), note=str(axes))
        for dims, axes in NORM
    ]


def _embedding() -> list[Case]:
    made = []
    for bags in IDS:
        ids = nn.utils.rnn.pad_sequence([torch.tensor(b, dtype=torch.long) for b in bags], True, -1)
        made += [Case("embedding", Bags(), (shaped,)) for shaped in (ids, ids[:, None])]
    return made


def _attention() -> list[Case]:
    made = []
    for keyed, masked, *rest in ATTENTION:
        query, value = counted(2, 2, 3), counted(2, 3, 4)
        mask = torch.rand(2, 2, 3) <= 0.5 if masked else torch.ones(2, 2, 3, dtype=torch.bool)
        made.append(
            Case("attention",
                 Attention(*rest).eval(), (query, value, 1.5 * value if keyed else value, mask)))
    return made


TABLES: dict[str, Callable[[], list[Case]]] = {
    "einsum": _einsum, "layer norm": _norm, "embedding": _embedding, "attention": _attention
}


def cases(kind: str) -> list[Case]:
    """Returns the cases of one table."""
    torch.manual_seed(0)
    return TABLES[kind]()
