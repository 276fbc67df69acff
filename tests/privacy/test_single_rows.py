"""What one row adds on its own is within the bound: every kind x strategy x dtype, adversarial
rows.

The registry is enumerated, so a new rule is pressed the moment it exists. A row's output gradients
are given with the row, so that inputs and gradients are adversarial both. Lengths are taken in
float64 of what was emitted.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from support import steps
from torch import Tensor, nn

import fxperex
from fxperex import kernels
from fxperex.config import SLACK
from fxperex.errors import StateError
from fxperex.layers import conv
from fxperex.numerics import rounding
from fxperex.numerics.norms import sq_norm
from fxperex.registry import kinds, strategies, ways
from fxperex.runtime.module import PerExampleModule
from fxperex.sites import Site
from fxperex.testing import Bare
from fxperex.transform import outline

CLIP = 1.0
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = [F64, F32, BF16, F16]
UNSTORED = ("ghost", "outer", "fused")
Batch = tuple[Tensor, ...]


def _signs(x: Tensor) -> Tensor:
    """`+1, -1, +1, ...` along the longest dimension but the rows'."""
    dim = max(range(1, x.dim()), key=lambda d: x.shape[d]) if x.dim() > 1 else 0
    line = torch.ones(x.shape[dim], dtype=x.dtype)
    line[1::2] = -1
    return line.view(*(-1 if d == dim else 1 for d in range(x.dim())))


def _spike(x: Tensor, value: float) -> Tensor:
    made = x.clone()
    made.view(-1)[x.numel() // 2] = value
    return made


def _dust(x: Tensor) -> Tensor:
    """Numbers whose squares vanish beside the first of 64, one by one."""
    flat = torch.full((x.numel(),), 0.98**0.5 * 2.0**-12, dtype=F64)
    flat[::64] = 1
    return flat.view(x.shape).to(x.dtype)


# Of inputs `x` and of output gradients `g`, each of one row.
ROWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "ordinary": (lambda x: x, lambda g: 3 * g),
    "equal": (lambda x: torch.full_like(x, 1.1), lambda g: torch.full_like(g, 1.1)),
    "one hot": (lambda x: _spike(torch.zeros_like(x), 1e3), lambda g: torch.full_like(g, 0.7)),
    "cancelling": (lambda x: torch.full_like(x, 1.1), lambda g: 1e3 * _signs(g).expand_as(g)),
    "nearly": (lambda x: torch.full_like(x, 1.1), lambda g: 1e3 * (_signs(g) + 1e-3 * g)),
    "huge": (lambda x: 1e15 * x, lambda g: g),
    "longest": (lambda x: 1e18 * x.sign(), lambda g: 1e-24 * g),
    "tiny": (lambda x: 1e-15 * x, lambda g: 1e-10 * g),
    "denormal": (lambda x: 1e-40 * x.sign(), lambda g: g),
    "denormal gradient": (lambda x: x, lambda g: 1e-40 * g.sign()),
    "dust": (_dust, lambda g: torch.full_like(g, 1.3)),
    "nan": (lambda x: _spike(x, math.nan), lambda g: g),
    "inf": (lambda x: x, lambda g: _spike(g, math.inf)),
}
SAME_TOKENS = {"equal", "cancelling", "nearly", "dust"}


def _forward(m: nn.Module, *batch: Tensor) -> Tensor:
    out = m(*batch[:-1])
    out, g = out[0] if isinstance(out, tuple) else out, batch[-1]
    wide = F64 if g.dtype == F64 else F32
    return (out.to(wide) * g.to(wide)).flatten(1).sum(1)


def _with_gradients(model: nn.Module, batch: Batch) -> Batch:
    with torch.no_grad():
        out = model(*batch)
    out = out[0] if isinstance(out, tuple) else out
    draw = torch.Generator().manual_seed(3)
    return (*batch, torch.randn(out.shape, generator=draw).to(out.dtype))


def _row(batch: Batch, name: str) -> Batch:
    inputs, gradients = ROWS[name]
    made: list[Tensor] = []
    for x in (v[:1] for v in batch[:-1]):
        if x.is_floating_point():
            made.append(inputs(x).to(x.dtype))
        else:
            made.append(torch.zeros_like(x) if name in SAME_TOKENS else x)
    return (*made, gradients(batch[-1][:1]).to(batch[-1].dtype))


def _emitted(private: PerExampleModule, row: Batch) -> float:
    """Length of what a batch of that one row adds, over the bound."""
    return math.sqrt(sum(float(s.double().square().sum()) for s in private.sums(*row)[1])) / CLIP


def _press(model: nn.Module, batch: Batch, names: Iterable[str],
           rows: Iterable[str]) -> dict[str, float]:
    """Returns {strategy: longest share} of those that are legal; asserts none above the bound."""
    batch = _with_gradients(model, batch)
    found: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, private in steps(model, batch, _forward, [(name, CLIP) for name in names]):
            if name not in {c.strategy for c in private.plan.choices} | {private.plan.mode}:
                continue
            for row in rows:
                far = _emitted(private, _row(batch, row))
                assert far <= 1 + SLACK, (name, row, (far - 1) / SLACK)
                found[name] = max(found.get(name, 0.0), far)
    return found


def _sample(kind: str, index: int, dtype: torch.dtype) -> tuple[nn.Module, Batch]:
    torch.manual_seed(7)
    model, batch = kinds()[kind].samples()[index]
    cast = tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)
    return copy.deepcopy(model).to(dtype), cast


@pytest.mark.parametrize("kind", list(kinds()))
def test_no_row_adds_more_than_the_bound(kind: str) -> None:
    names = UNSTORED + (("unfold", "vmap") if kind == "conv" else ("direct", "vmap"))[:1]
    found = _press(*_sample(kind, 1 if kind == "linear" else 0, F32), names, ROWS)
    assert not found or max(found.values()) >= 0.999


@pytest.mark.parametrize(("kind", "dtype"), [
    ("linear", BF16), ("conv", F16), ("embedding", BF16), ("linear", F64)])
def test_no_row_adds_more_in_other_dtypes(kind: str, dtype: torch.dtype) -> None:
    sample = _sample(kind, 1 if kind == "linear" else 0, dtype)
    found = _press(*sample, ("ghost", "unfold", "direct"), ROWS)
    assert max(found.values()) >= 0.999


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "index"), [
    (name, i) for name, kind in kinds().items() for i in range(len(kind.samples()))])
def test_no_row_adds_more_under_any_strategy(kind: str, index: int, dtype: torch.dtype) -> None:
    assert _press(*_sample(kind, index, dtype), ways(), ROWS)


def _depthwise() -> nn.Module:
    return nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False)


def _table(table: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.embedding(ids, table).sum(1)


# Sums over many positions: (model, one row's input, strategies).
LONG: dict[str, tuple[Callable[[], nn.Module], Batch, tuple[str, ...]]] = {
    "conv 32": (lambda: nn.Conv2d(3, 8, 3, bias=False), (torch.ones(1, 3, 32, 32),), ("ghost",)),
    "conv 64": (lambda: nn.Conv2d(3, 8, 3, bias=False), (torch.ones(1, 3, 64, 64),), ("ghost",)),
    "conv1d": (
        lambda: nn.Conv1d(2, 4, 3, bias=False), (torch.ones(1, 2, 2000),), ("ghost", "unfold")),
    "depthwise": (_depthwise, (torch.ones(1, 8, 24, 24),), ("ghost", "unfold")),
    "transposed": (
        lambda: nn.ConvTranspose2d(3, 4, 3, bias=False), (torch.ones(1, 3, 24, 24),), ("ghost",)),
    "linear 4096": (lambda: nn.Linear(6, 5, bias=False), (torch.ones(1, 4096, 6),), ("fused",)),
    "linear 1024": (
        lambda: nn.Linear(6, 5, bias=False), (torch.ones(1, 1024, 6),), ("ghost", "fused")),
    "bag": (lambda: Bare(_table, (6, 4)), (torch.zeros(1, 2048, dtype=torch.long),), ("ghost",)),
}


@pytest.mark.parametrize("case", LONG)
def test_sums_over_many_positions_stay_within_the_bound(case: str) -> None:
    make, batch, names = LONG[case]
    torch.manual_seed(1)
    if batch[0].is_floating_point():
        batch = (torch.randn(batch[0].shape),)
    found = _press(make(), batch, names, ("equal", "cancelling", "nearly", "ordinary"))
    assert set(found) == set(names)


def test_a_norm_is_not_read_lower_than_its_bound_allows() -> None:
    """In a block summed one by one, numbers that vanish singly make a norm 1.9 times 2^-20 low."""
    vector = torch.full((1, 64, 2), 0.98**0.5 * 2.0**-12)
    vector[:, 0] = 1
    row = vector[:, :, 0]  # of every other number, which no vector instruction reads
    low = float(row.double().norm() / sq_norm(row).sqrt())
    single = torch.ones(1, dtype=F64)
    assert 1 + SLACK < low <= float(rounding.raised(single, F32).sqrt()) * (1 + SLACK)
    assert float(rounding.raised(single, F64)) == 1.0


@contextmanager
def _set(target: object, name: str, value: object) -> Iterator[None]:
    """torch's settings have no `__dict__` that `monkeypatch` could put back."""
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


def _nearest(x: Tensor) -> Tensor:
    """`x` as TF32, halves away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _cut(x: Tensor) -> Tensor:
    """`x` as TF32, what does not fit cut off."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


TF32_CASES: list[tuple[str, nn.Module, tuple[int, ...]]] = [
    ("ghost", nn.Linear(6, 5, bias=False), (1, 16, 6)),
    ("fused", nn.Linear(6, 5, bias=False), (1, 16, 6)),
    ("outer", nn.Linear(6, 5, bias=False), (1, 6)),
    ("ghost", nn.Conv2d(2, 3, 3, bias=False), (1, 2, 6, 6))]


@pytest.mark.parametrize("cut", [_nearest, _cut])
@pytest.mark.parametrize(("name", "model", "shape"), TF32_CASES)
def test_sums_of_tf32_operands_stay_within_the_bound(
        name: str, model: nn.Module, shape: tuple[int, ...], cut: Callable[[Tensor], Tensor],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "operands", lambda device: (2.0**-10, 2.0**-10))
    formed = conv.weight_gradient
    monkeypatch.setattr(conv, "weight_gradient", lambda x, g, *rest: formed(cut(x), cut(g), *rest))
    monkeypatch.setattr(kernels, "product", lambda g, a, valid: cut(g).mT @ cut(a))
    draw = torch.Generator().manual_seed(1)
    batch = _with_gradients(model, (torch.randn(shape, generator=draw),))
    ((_, private),) = steps(model, batch, _forward, [(name, CLIP)])
    assert {c.strategy for c in private.plan.choices} == {name}
    step = 1 + 1.01 * 2.0**-11  # rounded up as far as any
    rows = [tuple(torch.full_like(v, step) for v in batch)]
    rows += [_row(batch, row) for row in ("ordinary", "cancelling", "nearly", "equal")]
    assert max(_emitted(private, row) for row in rows) <= 1 + SLACK
    assert min(_emitted(private, row) for row in rows[:2]) >= 0.98


def _site(model: nn.Module, *batch: Tensor) -> Site:
    return outline(model, batch, forward=lambda m, x: m(x).flatten(1).sum(1)).plan.choices[0].site


def test_tf32_is_asked_for_the_device_of_the_site() -> None:
    linear = _site(nn.Linear(6, 5, bias=False), torch.randn(2, 16, 6))
    image = _site(nn.Conv2d(2, 3, 3, bias=False), torch.randn(2, 2, 6, 6))
    table = replace(linear, kind="embedding")
    known, cuda = strategies(), torch.device("cuda")
    assert rounding.rounds(linear) == rounding.rounds(replace(linear, device=cuda)) == 0.0
    assert known["ghost"].illegal(image) is None
    assert "Winograd" in known["ghost"].illegal(replace(image, device=cuda))
    assert "not known" in known["ghost"].illegal(replace(linear, device=torch.device("mps")))
    there = replace(linear, device=cuda)
    with _set(torch.backends.cuda.matmul, "fp32_precision", "tf32"):
        assert rounding.rounds(linear) == rounding.rounds(replace(table, device=cuda)) == 0.0
        assert rounding.rounds(there) == rounding.rounds(replace(there, dtype=BF16)) == 2.0**-10
        assert rounding.rounds(replace(there, dtype=F64)) == 0.0
        assert rounding.rho(there, F32) > 2.0**-9 and known["ghost"].illegal(there) is None
    with _set(torch.backends.cudnn, "enabled", False):
        assert known["ghost"].illegal(replace(image, device=cuda)) is None
        assert rounding.rounds(replace(image, device=cuda)) == 2.0**-10


def test_a_step_is_refused_once_products_round_more_than_it_was_made_for() -> None:
    x = torch.randn(2, 6)

    def step() -> PerExampleModule:
        return fxperex.transform(nn.Linear(6, 5), (x,), forward=lambda m, x: m(x).sum(1),
                                 backend="eager")

    private = step()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(StateError, match="before transform"):
            private.step(x)
        rounding_more = step()
    finally:
        torch.set_float32_matmul_precision("highest")
    private.step(x)
    rounding_more.step(x)
