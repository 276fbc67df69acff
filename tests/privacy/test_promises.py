"""Promises that one changed line could break without any other test noticing; `tests/mutants`
breaks each.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.analysis.rules import RULES
from fxperex.capture.forward import as_forward
from fxperex.clipping import Adaptive, Automatic, Clip, Flat, Normalised, PerGroup, PerLayer
from fxperex.config import SLACK
from fxperex.errors import (
    BatchMixingError,
    CaptureError,
    LedgerError,
    MutationError,
    SemanticsWarning,
)
from fxperex.numerics.norms import sq_norm
from fxperex.privacy import (
    Mechanism,
    Noise,
    PoissonSampler,
    PrivacyEngine,
    Secret,
    ShuffledSampler,
    TruncatedPoissonSampler,
    epsilon,
)
from fxperex.ranks import ALONE
from fxperex.testing import clipped, error, loop

Make = Callable[..., PrivacyEngine]


@pytest.mark.parametrize(
    ("rule", "norms", "factors"),
    [(Flat(0.5), [[0.1], [0.5], [2.0]], [[1.0], [1.0], [0.25]]),
     (PerLayer(1.0), [[0.1, 10.0], [0.2, 0.3]], [[1.0, 0.5**0.5 / 10], [1.0, 1.0]]),
     (PerGroup({"a": 0.1, "b": 0.3}), [[0.05, 3.0]], [[1.0, 0.1]]),
     (Adaptive(0.5), [[0.1], [4.0]], [[2.0], [0.25]]),
     (Normalised(0.5, 1e-3), [[1e-4], [2.0]], [[500.0], [0.25]]),
     (Automatic(0.5, 1.0), [[0.1], [4.0]], [[0.5 / 1.1], [0.1]])], ids=lambda x: type(x).__name__)
def test_a_gradient_below_its_bound_is_left_alone(rule: Clip, norms: list[list[float]],
                                                  factors: list[list[float]]) -> None:
    found = rule.apply(torch.tensor(norms, dtype=torch.float64), *rule.inputs())
    torch.testing.assert_close(found, torch.tensor(factors, dtype=torch.float64))


@pytest.mark.parametrize("strategy", ["unfold", "ghost", "multi", "auto"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_sums_stay_within_the_bound(dtype: torch.dtype, strategy: str) -> None:
    draw = torch.Generator().manual_seed(5)
    model = nn.Linear(33, 7, bias=False).to(dtype)
    x, y = torch.randn(1, 5, 33, generator=draw).to(dtype), torch.randn(1, 5, 7,
                                                                        generator=draw).to(dtype)
    private = fxperex.transform(model, (x, y), forward=lambda m, x, y:
                                (m(x).float() * y.float()).sum(
                                    (1, 2)), clip=0.37, strategy=strategy, backend="eager")
    result, sums = private.sums(x, y)
    truth = y[0].double().t() @ x[0].double()
    assert float(sums[0].double().norm()) <= 0.37 * (1 + SLACK)
    # What is stored is stored in 16 bits; what is not is rounded to the sum's own float32 alone.
    assert error(sums[0], 0.37 * truth /
                 truth.norm()) <= (1e-6 if strategy == "ghost" else torch.finfo(dtype).eps)
    assert float(result.norms) == pytest.approx(float(truth.norm()), rel=torch.finfo(dtype).eps)


def test_long_norms_are_not_read_low() -> None:
    # torch's own float32 norm of as many equal entries is 2.6e-3 low on the CPU.
    x = torch.full((1, 38_000_000), 1e-3)
    exact = 38_000_000 * float(np.float32(1e-3)) ** 2
    assert float(sq_norm(x)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("kind", ["linear", "embedding"])
@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_what_rounding_adds_to_cancelling_tokens_is_in_the_norm(kind: str, spread: float) -> None:
    tokens, draw = 512, torch.Generator().manual_seed(1)
    model: nn.Module = nn.Linear(1, 1, bias=False) if kind == "linear" else nn.Embedding(2, 1)
    other = torch.ones(1, tokens, 1) if kind == "linear" else torch.zeros(
        1, tokens, dtype=torch.long)
    signs = torch.tensor([1.0, -1.0]).repeat(tokens // 2)

    def push() -> Tensor:
        return (1e3 * (signs * torch.rand(1, generator=draw) +
                       spread * torch.randn(tokens, generator=draw)))[None, :, None]

    private = fxperex.transform(model, (other, push()), forward=lambda m, x, p: (m(x) * p).sum(
        (1, 2)), clip=1.0, strategy="ghost", backend="eager")
    # One number is summed, so half of the roundings go up: 24 rows without one that does are as
    # good as impossible.
    emitted = [float(private.sums(other, push())[1][0].double().norm()) for _ in range(24)]
    assert max(emitted) <= 1 + SLACK


def test_tensors_and_generations_have_noise_of_their_own() -> None:
    def drawn(step: int, generation: int) -> list[Tensor]:
        return Noise(Mechanism(Flat(1.0), 1.0, "add-or-remove", 1.0, 8), secret).release(
            [torch.zeros(2000), torch.zeros(2000)], step, generation)

    secret = Secret()
    draws = torch.stack(
        [x for step in (0, 1) for generation in (0, 1) for x in drawn(step, generation)])
    together = torch.corrcoef(draws).fill_diagonal_(0)
    assert together.abs().max() < 4.9 / 2000**0.5


def test_the_threshold_is_met_to_the_last_bit() -> None:
    sampler = PoissonSampler(3, 3e-7, 1, seed=0)

    class Bits:
        def bits(self, count: int, step: int, item: int = 0) -> np.ndarray:
            return np.array([sampler.threshold - 1, sampler.threshold, 2**64 - 1], dtype=np.uint64)

    sampler.secret.streams = lambda purpose, generation=0: Bits(
    )  # type: ignore[method-assign, assignment, return-value]
    assert sampler.draw(0).tolist() == [0]


def test_shuffled_batches_cost_an_epoch_of_gaussian() -> None:
    sampler = ShuffledSampler(40, 10, 8, seed=0)
    whole = epsilon(PoissonSampler(40, 40, 2, seed=0), 2.0, 1e-5, relation="zero-out")
    assert epsilon(sampler, 2.0, 1e-5, relation="zero-out") == pytest.approx(whole, rel=1e-6)
    assert [sampler.units(n) for n in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert sampler.units(2, first=3) == 2 and sampler.units(1, first=4) == 1


def test_cutting_batches_down_costs_more() -> None:
    cut, whole = TruncatedPoissonSampler(40, 10, 6, 10, seed=0), PoissonSampler(40, 10, 6, seed=0)
    assert epsilon(cut, 1.3, 1e-3) > 1.01 * epsilon(whole, 1.3, 1e-3)


def test_replacing_costs_more_than_adding() -> None:
    sampler = PoissonSampler(40, 40, 1, seed=0)
    adding, replacing = (epsilon(sampler, 4.0, 1e-5, relation=r)
                         for r in ("add-or-remove", "replace"))
    # One Gaussian whose means are twice as far apart.
    assert replacing == pytest.approx(epsilon(sampler, 2.0, 1e-5),
                                      rel=1e-3) and replacing > 1.9 * adding


def test_the_debit_is_on_disk_before_data_is_read(engine: Make, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Watched(torch.utils.data.TensorDataset):
        def __getitem__(self, i: int) -> Any:
            seen.append("read")
            return super().__getitem__(i)

    X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3
    run = engine(folder=tmp_path, dataset=Watched(X, Y))
    ledger, sync = (tmp_path / "ledger.jsonl").stat(), os.fsync

    def watched(handle: int) -> None:
        sync(handle)
        if os.fstat(handle).st_ino == ledger.st_ino:
            seen.append(
                json.loads((tmp_path / "ledger.jsonl").read_bytes().splitlines()[-1])["kind"])

    monkeypatch.setattr(os, "fsync", watched)
    seen.clear()  # making the engine may look at the shapes of one example
    run.step()
    assert seen[0] == "begin" and seen[1] == "read" and seen[-1] == "sum"


def test_the_ledger_does_not_give_the_sum_away(engine: Make, tmp_path: Path,
                                               private: Callable[..., Any]) -> None:
    step, found = private(), []
    sums = step.sums

    def watched(*batch: Tensor) -> Any:
        result, made = sums(*batch)
        found.append([s.clone() for s in made])
        return result, made

    step.sums = watched
    try:
        run = engine(step, folder=tmp_path)
        run.step()
    finally:
        del step.sums
    recorded = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_bytes().splitlines()]
    (digest,) = [r["hash"] for r in recorded if r["kind"] == "sum"]
    sums = [torch.stack(parts).double().sum(0) for parts in zip(*found, strict=True)]
    totals = ALONE.totals(sums, [torch.float32] * len(sums))

    def hashed(key: bytes) -> str:
        return hashlib.blake2b(totals.digest(key) + b"0.0", key=key, digest_size=32).hexdigest()

    assert digest == hashed(run.randomness.key("sum", 0)) and digest != hashed(b"")


def test_lines_of_another_history_do_not_fit(engine: Make, tmp_path: Path) -> None:
    import shutil

    run = engine(folder=tmp_path / "a", checkpoint_every=9)
    run.step()
    run.close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name, steps in (("a", 2), ("b", 1)):
        again = engine(folder=tmp_path / name, checkpoint_every=9)
        for _ in range(steps):
            again.step()
        again.checkpoint() if name == "b" else None
        again.close()
    mine, theirs = ((tmp_path / name / "ledger.jsonl").read_bytes().splitlines(keepends=True)
                    for name in "ab")
    at = next(i for i, (m, t) in enumerate(zip(mine, theirs, strict=False))
              if json.loads(m) != json.loads(t))
    assert len(mine) > at + 1
    # A line of the same key and number, out of the other copy's history.
    (tmp_path / "a" / "ledger.jsonl").write_bytes(b"".join([*mine[:at], theirs[at],
                                                            *mine[at + 1:]]))
    with pytest.raises(LedgerError, match="tampered"):
        engine(folder=tmp_path / "a", checkpoint_every=9)


def test_an_operation_without_a_rule_is_refused() -> None:
    assert "aten.renorm" not in RULES
    model = nn.Linear(4, 4)
    with pytest.raises((BatchMixingError, CaptureError), match="renorm"):
        fxperex.transform(model, (torch.randn(4, 4), ),
                          forward=lambda m, x: m(x).renorm(2, 1, 1.0).sum(1), backend="eager")


def test_what_holds_at_one_size_alone_is_refused() -> None:
    # With 4 rows this keeps every row, with 5 it deals them out anew.
    model = nn.Linear(20, 20)
    with pytest.raises((BatchMixingError, CaptureError)):
        fxperex.transform(
            model, (torch.randn(4, 20), ), backend="eager",
            forward=lambda m, x: m(x).reshape(4, -1).roll(1, 1).reshape(len(x), -1).square().sum(1))


def test_rows_of_other_examples_are_refused() -> None:
    ids = torch.tensor([1, 0, 3, 2])
    with pytest.raises(BatchMixingError, match="indexes the batch dimension"):
        fxperex.transform(nn.Linear(6, 6), (torch.randn(4, 6), ids),
                          forward=lambda m, x, i: m(x)[i].sum(1), backend="eager")


def test_a_buffer_that_remembers_the_batch_is_refused() -> None:
    class Running(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 6)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            h = super().forward(x)
            self.seen += h.detach().sum()
            return h

    with pytest.raises(MutationError, match="'seen'"):
        fxperex.transform(Running(), (torch.randn(4, 6), ), forward=lambda m, x: m(x).sum(1),
                          backend="eager")


def test_examples_in_another_order_do_not_meet() -> None:
    model = nn.Linear(6, 6)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        h = m(x)
        return (h.flatten(0, 1) + h.transpose(0, 1).flatten(0, 1)).reshape(len(x), -1).sum(1)

    with pytest.raises(BatchMixingError, match="another order"):
        fxperex.transform(model, (torch.randn(4, 3, 6),), forward=loss, backend="eager")


@pytest.mark.parametrize("strategy", ["auto", "ghost", "multi"])
def test_a_parameter_and_a_piece_of_it_have_one_norm(strategy: str) -> None:
    def loss(m: nn.Module, x: Tensor) -> Tensor:
        return (x @ m.weight + 2 * x[:, :3] @ m.weight[:3]).square().sum(1)

    model, x = nn.Linear(4, 5, bias=False).double(), torch.randn(4, 5, dtype=torch.float64)
    total, norms = clipped(loop(model, loss, (x,)), 0.7)
    private = fxperex.transform(model, (x, ), forward=loss, clip=0.7, strategy=strategy,
                                backend="eager")
    result, sums = private.sums(x)
    assert error(result.norms, norms) <= 1e-9 and error(sums[0], total["weight"]) <= 1e-9


def test_weights_with_ignored_positions_are_the_examples_own() -> None:
    weights = torch.tensor([0.3, 1.7, 0.9, 2.2], dtype=torch.float64)

    def loss(p: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(p, y, weight=weights, ignore_index=1)

    model, x = nn.Sequential(nn.Linear(6, 12),
                             nn.Unflatten(1,
                                          (4, 3))).double(), torch.randn(4, 6, dtype=torch.float64)
    y = torch.tensor([[0, 1, 2], [3, 1, 1], [2, 0, 3], [1, 3, 2]])
    total, norms = clipped(loop(model, as_forward(loss), (x, y)), 0.5)
    with pytest.warns(SemanticsWarning):
        private = fxperex.transform(model, (x, y), loss, clip=0.5, backend="eager")
    assert error(private.step(x, y).norms, norms) <= 1e-9
    for name, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, total[name]) <= 1e-9
