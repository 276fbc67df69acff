"""Parameters with several uses, and parameters behind other parameters, under every strategy against the loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import against_the_loop
from torch import Tensor, nn

from fxperex.registry import strategies
from fxperex.testing import Bare, Call

STRATEGIES = strategies()
Case = tuple[nn.Module, tuple[Tensor, ...]]


class Tied(nn.Module):
    """An embedding that is also the output layer, written as `output(table, hidden)`."""

    def __init__(self, output: Callable[[Tensor, Tensor], Tensor], padding_idx: int | None = None) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(7, 4, padding_idx=padding_idx), output

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.table.weight, self.table(ids).tanh())


def chunks(weight: Tensor, x: Tensor) -> Tensor:
    """Both halves of a stacked weight, each cut off anew and used twice."""
    for _ in range(2):
        one, two = weight.chunk(2)
        x = F.linear(F.linear(x, one).tanh(), two).sin()
    return x


IDS = torch.tensor([[1, 2, 2, 6, 0], [3, 3, 3, 3, 3], [0, 1, 2, 3, 4], [6, 5, 6, 5, 1]])

# name -> (module, batch, number of sites)
JOINED: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...], int]]] = {
    "linear twice": lambda: (Call(lambda m, x: m(m(x).tanh()), nn.Linear(5, 5)), (torch.randn(3, 4, 5),), 2),
    "linear twice, T = 1": lambda: (Call(lambda m, x: m(m(x).tanh()), nn.Linear(5, 5)), (torch.randn(3, 5),), 2),
    "module and function": lambda: (Call(lambda m, x: m(x) + x @ m.weight, nn.Linear(5, 5)), (torch.randn(3, 4, 5),), 2),
    "transposed": lambda: (Call(lambda m, x: F.linear(m(x).tanh(), m.weight.t()), nn.Linear(5, 3)),
                           (torch.randn(3, 4, 5),), 2),
    "other ranks": lambda: (Call(lambda m, x: m(x) * m(x.mean(1))[:, None], nn.Linear(5, 3)), (torch.randn(3, 4, 5),), 2),
    "conv twice": lambda: (Call(lambda m, x: m(m(x).tanh()), nn.Conv1d(4, 4, 3, padding=1, groups=2)),
                           (torch.randn(3, 4, 5),), 2),
    "conv at two strides": lambda: (Bare(lambda p, x: F.conv2d(F.conv2d(x, p, padding=1).tanh(), p, stride=2), (2, 2, 3, 3)),
                                    (torch.randn(3, 2, 5, 6),), 1),
    "embedding and output": lambda: (Tied(lambda w, h: F.linear(h, w)), (IDS,), 1),
    "embedding and product": lambda: (Tied(lambda w, h: h @ w.t(), padding_idx=2), (IDS,), 1),
    "two embeddings": lambda: (Bare(lambda p, i: F.embedding(i, p) * F.embedding(i.flip(1), p), (7, 3)), (IDS,), 1),
    "embedding, transposed table": lambda: (Bare(lambda p, i: F.embedding(i, p.t()) @ p, (4, 7)), (IDS,), 1),
    "embeddings both ways": lambda: (Bare(lambda p, i: F.embedding(i, p) * F.embedding(i.flip(1), p.t()), (7, 7)), (IDS,), 1),
    "batched weight twice": lambda: (Bare(lambda p, x: ((x @ p).tanh() @ p), (2, 5, 5)), (torch.randn(3, 2, 4, 5),), 1),
    "vector twice": lambda: (Bare(lambda p, x: x * p + (x * p).sin(), (5,)), (torch.randn(3, 4, 5),), 1),
    "unrolled loop": lambda: (Call(unrolled, nn.Linear(4, 4)), (torch.randn(3, 5, 4),), 2),
    "chunks twice": lambda: (Bare(chunks, (8, 4)), (torch.randn(3, 2, 4),), 2),
    "weight norm twice": lambda: (Call(lambda m, x: m(m(x).tanh()), nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))),
                                  (torch.randn(3, 4, 5),), 2),
}


def unrolled(cell: nn.Module, x: Tensor) -> Tensor:
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = (cell(h) + x[:, t]).tanh()
    return h


@pytest.mark.parametrize("name", JOINED)
def test_uses_of_one_tensor_are_one_site(name: str) -> None:
    model, batch, sites = JOINED[name]()
    for step in against_the_loop(model.double(), tuple(b.double() if b.is_floating_point() else b for b in batch), STRATEGIES):
        found = [c.site for c in step.plan.choices]
        assert [s.parts for s in found].count(()) < len(found)
        assert len(found) == sites
