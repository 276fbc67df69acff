"""Parameters with several uses, and parameters behind other parameters, under every strategy
against the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from parameter_programs import DEAD, Weights, drawn, single
from support import against_the_loop, curved
from torch import Tensor, nn

import fxperex
from fxperex.analysis.origins import Origins
from fxperex.errors import CoverageError
from fxperex.registry import ways
from fxperex.testing import Bare, Call, error, loop

STRATEGIES = ways()
Case = tuple[nn.Module, tuple[Tensor, ...]]


class Tied(nn.Module):
    """An embedding that is also the output layer, written as `output(table, hidden)`."""

    def __init__(self, output: Callable[[Tensor, Tensor], Tensor],
                 padding_idx: int | None = None) -> None:
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
    "linear twice": lambda: (Call(lambda m, x: m(m(x).tanh()), nn.Linear(5, 5)),
                             (torch.randn(3, 4, 5), ), 2),
    "linear twice, "
    "T = 1": lambda: (Call(lambda m, x: m(m(x).tanh()), nn.Linear(5, 5)), (torch.randn(3, 5), ), 2),
    "module and function": lambda: (Call(lambda m, x: m(x) + x @ m.weight, nn.Linear(5, 5)),
                                    (torch.randn(3, 4, 5), ), 2),
    "transposed": lambda: (Call(lambda m, x: F.linear(m(x).tanh(), m.weight.t()), nn.Linear(5, 3)),
                           (torch.randn(3, 4, 5), ), 2),
    "other ranks": lambda: (Call(lambda m, x: m(x) * m(x.mean(1))[:, None], nn.Linear(5, 3)),
                            (torch.randn(3, 4, 5), ), 2),
    "conv twice": lambda:
    (Call(lambda m, x: m(m(x).tanh()), nn.Conv1d(4, 4, 3, padding=1, groups=2)),
     (torch.randn(3, 4, 5), ), 2),
    "conv at two strides": lambda:
    (Bare(lambda p, x: F.conv2d(F.conv2d(x, p, padding=1).tanh(), p, stride=2), (2, 2, 3, 3)),
     (torch.randn(3, 2, 5, 6), ), 1),
    "embedding and output": lambda: (Tied(lambda w, h: F.linear(h, w)), (IDS, ), 1),
    "embedding and product": lambda: (Tied(lambda w, h: h @ w.t(), padding_idx=2), (IDS, ), 1),
    "two embeddings": lambda: (Bare(lambda p, i: F.embedding(i, p) * F.embedding(i.flip(1), p),
                                    (7, 3)), (IDS, ), 1),
    "embedding, transposed "
    "table": lambda: (Bare(lambda p, i: F.embedding(i, p.t()) @ p, (4, 7)), (IDS, ), 1),
    "embeddings both "
    "ways": lambda: (Bare(lambda p, i: F.embedding(i, p) * F.embedding(i.flip(1), p.t()), (7, 7)),
                     (IDS, ), 1),
    "batched weight "
    "twice": lambda: (Bare(lambda p, x: ((x @ p).tanh() @ p), (2, 5, 5)),
                      (torch.randn(3, 2, 4, 5), ), 1),
    "vector twice": lambda: (Bare(lambda p, x: x * p + (x * p).sin(), (5, )),
                             (torch.randn(3, 4, 5), ), 1),
    "unrolled loop": lambda: (Call(unrolled, nn.Linear(4, 4)), (torch.randn(3, 5, 4), ), 2),
    "chunks twice": lambda: (Bare(chunks, (8, 4)), (torch.randn(3, 2, 4), ), 2),
    "weight norm twice": lambda:
    (Call(lambda m, x: m(m(x).tanh()), nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))),
     (torch.randn(3, 4, 5), ), 2),
}


def unrolled(cell: nn.Module, x: Tensor) -> Tensor:
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = (cell(h) + x[:, t]).tanh()
    return h


@pytest.mark.parametrize("name", JOINED)
def test_uses_of_one_tensor_are_one_site(name: str) -> None:
    model, batch, sites = JOINED[name]()
    for step in against_the_loop(model.double(),
                                 tuple(b.double() if b.is_floating_point() else b for b in batch),
                                 STRATEGIES):
        found = [c.site for c in step.plan.choices]
        assert [s.parts for s in found].count(()) < len(found)
        assert len(found) == sites


def _unused_equals_a_plain_backward(programs: list[tuple[str, ...]]) -> set[str]:
    """Asserts that no parameter is dropped and that each has the loop's gradient; returns those
    without one.
    """
    torch.manual_seed(2)
    model, x = Weights(programs), torch.randn(3, 4, dtype=torch.float64)
    truth = loop(model, curved, (x,))
    private = fxperex.transform(model, (x,), forward=curved, backend="eager")
    unused = set(private.analysis.unused)
    grads = torch.autograd.grad(curved(model, x).sum(), list(model.parameters()), allow_unused=True)
    named = dict(zip(truth, grads, strict=True))
    dropped = {n for n in unused if named[n] is not None}
    assert not dropped, [programs[int(n.split(".")[1])] for n in dropped]
    found = private.gradients(x)
    for i, (name, rows) in enumerate(truth.items()):
        assert error(found[name], rows, 1e-3) <= 1e-9, programs[i]
    return unused


def test_every_way_to_compute_a_weight_keeps_its_gradient() -> None:
    unused = _unused_equals_a_plain_backward(single())
    assert {single()[int(n.split(".")[1])][0] for n in unused} == DEAD


def test_drawn_ways_to_compute_a_weight_keep_its_gradient() -> None:
    _unused_equals_a_plain_backward(drawn(0, 12))


@pytest.mark.nightly
def test_two_thousand_ways_to_compute_a_weight() -> None:
    for seed in range(100, 140):
        _unused_equals_a_plain_backward(drawn(seed, 50, 5))


@pytest.mark.parametrize(("program", "shape"),
                         [(lambda p, x:
                           (x.to(torch.complex128) * torch.view_as_complex(p)).abs(), (4, 2)),
                          (lambda p, x: ((x * (1 + 2j)) * p).abs(), (4, ))])
def test_complex_numbers_that_meet_the_batch(program: Callable[[Tensor, Tensor], Tensor],
                                             shape: tuple[int, ...]) -> None:
    against_the_loop(Bare(program, shape).double(), (torch.randn(3, 4).double(),),
                     ("auto", "vmap", "multi", "naive"))


def test_a_parameter_that_the_sites_would_drop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Origins, "passes", lambda *_: False)
    with pytest.raises(CoverageError, match=r"parameter 'weight', used at .*test_sites\.py.*would "
                                            r"never train"):
        fxperex.transform(Bare(lambda p, x: x * p, (4, )), (torch.randn(3, 4), ), forward=curved,
                          backend="eager")


class Column(nn.Module):
    """Writes into a part of a tensor, in each way that people do it."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.write = nn.Linear(4, 4), write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.layer(x))


def _assigned(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, 0] = h[:, 1]
    return out + h


def _added(h: Tensor) -> Tensor:
    h[:, 0] += 3
    return h


def _halves(h: Tensor) -> Tensor:
    out = h.new_empty(len(h), 8)
    out[:, :4] = h
    out[:, 4:] = h.relu()
    return out


def _steps(h: Tensor) -> Tensor:
    out = torch.zeros(len(h), 4, dtype=h.dtype)
    for t in range(1, 4):
        out[:, t] = (h[:, t] + out[:, t - 1]).tanh()
    return out


def _whole(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out.copy_(h.relu())
    return out


def _cast(h: Tensor) -> Tensor:
    out = torch.zeros(len(h), 4, 4, dtype=torch.float64)
    out.copy_(h.float()[:, None])
    return out.flatten(1) + h.repeat(1, 4)


@pytest.mark.parametrize("write", [_assigned, _added, _halves, _steps, _whole, _cast])
def test_writes_into_parts_of_tensors(write: Callable[[Tensor], Tensor]) -> None:
    limit = 1e-6 if write is _cast else 1e-10  # a float32 rounding in the program itself
    model, x = Column(write).double(), torch.randn(3, 4).double()
    truth, found = loop(model, curved, (x,)), fxperex.transform(
        model, (x,), forward=curved, backend="eager").gradients(x)
    assert all(error(found[n], g, 1e-3) <= limit for n, g in truth.items())


class _Standardised(nn.Conv2d):
    """As the ResNets of BiT write it."""

    def forward(self, x: Tensor) -> Tensor:
        v, m = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - m) / torch.sqrt(v + 1e-10), self.bias)


def test_weight_standardisation_equals_the_loop() -> None:
    against_the_loop(
        _Standardised(2, 3, 3).double(), (torch.randn(3, 2, 5, 5).double(), ),
        ("ghost", "crb", "vmap", "naive"))


def test_an_operation_without_a_derivative_is_named() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return torch.igamma(model(x).abs(), x.abs()).sum(1)  # the line to be named

    with pytest.raises(CoverageError, match=r'aten\.igamma at .*test_sites\.py:\d+ "return '
                                            r'torch\.igamma'):
        fxperex.transform(nn.Linear(4, 4), (torch.randn(3, 4),), forward=forward, backend="eager")
