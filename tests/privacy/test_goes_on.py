"""A run always goes on: empty draws, rows that raise, and what may be handed to a step at all."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxperex
from fxperex.errors import ConfigError, FxperexError, LedgerError, PrivacyError, ShapeError
from fxperex.privacy import PrivacyEngine, Secret
from fxperex.privacy.noise.gaussian import Noise
from fxperex.runtime.module import PerExampleModule

Make = Callable[..., PrivacyEngine]
X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3
IDS = torch.arange(240).reshape(40, 6) % 9 + 1


class FromOne(nn.Module):
    """Ids from 1 into a table of their number: 0 is no legal value."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.table(ids - 1).mean(1))


def _from_one() -> PerExampleModule:
    torch.manual_seed(0)
    return fxperex.transform(FromOne(), (IDS[:4], Y[:4] + 1), backend="eager", clip=0.5,
                             loss=lambda o, y: nn.functional.cross_entropy(o, y - 1))


class Raises(torch.utils.data.TensorDataset):
    """Row 7 cannot be read."""

    def __getitem__(self, i: int) -> Any:
        if i == 7:
            raise ValueError("a broken record")
        return super().__getitem__(i)


class Ragged(torch.utils.data.TensorDataset):
    """Row 7 has another shape than the rest."""

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return (x[:5], y) if i == 7 else (x, y)


def _with_bad_label() -> tuple[Tensor, Tensor]:
    labels = Y.clone()
    labels[7] = 5
    return X, labels


def _weights(run: PrivacyEngine) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in run.private.parameters.values()])


@pytest.mark.parametrize("folder", [False, True])
def test_labels_and_ids_from_one_survive_empty_draws(folder: bool, engine: Make,
                                                     tmp_path: Path) -> None:
    run = engine(_from_one(), dataset=(IDS, Y + 1), expected_batch=1, epochs=1.5,
                 folder=tmp_path if folder else None)
    sizes = [len(result.norms) for result in run]
    assert len(sizes) == 60 == run.books.units and sizes.count(0) > 5 and sum(sizes) > 30


def test_an_empty_draw_reads_no_row(engine: Make) -> None:
    class Once(torch.utils.data.TensorDataset):
        read = 0

        def __getitem__(self, i: int) -> Any:
            self.read += 1
            return super().__getitem__(i)

    rows = Once(X, Y)
    assert len(list(engine(dataset=rows, expected_batch=1e-6, epochs=1e-7))) == 4
    assert rows.read == 1, "for its shapes, when the engine was made"


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a row that cannot be read": (lambda: Raises(X, Y), PrivacyError,
                                  "row 7: ValueError: a broken record.*debit stands.*leave_out"),
    "a row of another shape": (lambda: Ragged(X, Y), FxperexError,
                             "could not be put together|step was made for"),
    "a row that the model raises for": (_with_bad_label, FxperexError, "."),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_always_fails_is_left_out_by_a_recorded_act(name: str, engine: Make) -> None:
    data, kind, words = BAD[name]
    run, other = engine(dataset=data(), epochs=4), engine(dataset=(X, Y), epochs=4)
    while 7 not in run.sampler.draw(run.steps_done):
        assert torch.equal(run.step().norms, other.step().norms)
    step, size = run.steps_done, len(run.sampler.draw(run.steps_done))
    for _ in range(3):
        with pytest.raises(kind, match=words):
            run.step()
    assert run.steps_done == step and run.books.units == step + 1, "debited once"
    run.leave_out()
    result = run.step()
    assert len(result.norms) == size - 1 and run.steps_done == step + 1 == run.books.units
    # What the others added, and the noise of this step, are those of a step without the row.
    drawn = other.sampler.draw(step)
    sums = other.private.sums(*(x[drawn[drawn != 7]] for x in (X, Y)))[1]
    noise = Noise(other.mechanism, other.randomness)
    with torch.no_grad():
        for p, mean in zip(other.private.parameters.values(),
                           noise.release(sums, step), strict=True):
            p -= mean.float()
    torch.testing.assert_close(_weights(run), _weights(other))
    assert "were left out of 1 steps" in str(run.guarantee())


def test_every_row_left_out_is_a_step_of_noise(engine: Make) -> None:
    run = engine(dataset=(X, Y + 7), expected_batch=2, epochs=0.1)
    before = _weights(run)
    while run.steps_done < len(run):
        try:
            run.step()
        except FxperexError:
            run.leave_out()
    assert not torch.equal(before, _weights(run)) and run.books.units == len(run) == 2


def test_a_row_is_left_out_again_in_a_replay(engine: Make, tmp_path: Path) -> None:
    def go_on(run: PrivacyEngine) -> None:
        while run.steps_done < len(run):
            try:
                run.step()
            except PrivacyError:
                run.leave_out()

    run = engine(dataset=Raises(X, Y), folder=tmp_path, checkpoint_every=100, epochs=2)
    go_on(run)
    run.close()
    again = engine(dataset=Raises(X, Y), folder=tmp_path, checkpoint_every=100, epochs=2)
    assert again.steps_done == 0 and again.books.shortened
    assert len(list(again)) == 8, "the ledger says what was left out: nothing raises"
    assert torch.equal(_weights(run), _weights(again))
    assert again.books.units == 8 and again.books.extra == 0


def test_only_a_step_that_failed_leaves_rows_out(engine: Make) -> None:
    run = engine()
    with pytest.raises(LedgerError, match="no such step waits"):
        run.leave_out()
    with pytest.raises(ZeroDivisionError), run.logical_step():
        raise ZeroDivisionError
    with pytest.raises(LedgerError, match="no such step waits"):
        run.leave_out()


def test_a_fault_that_is_no_rows_fault_leaves_nothing_out(engine: Make,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    run, smooth = engine(), engine()

    def broken(*batch: Tensor) -> Any:
        raise RuntimeError("no kernel image")

    with monkeypatch.context() as patch:
        patch.setattr(run.private, "sums", broken)
        for _ in range(2):
            with pytest.raises(PrivacyError, match="no kernel image"):
                run.step()
            run.leave_out()
    assert len(run.step().norms) == len(smooth.step().norms)
    assert torch.equal(_weights(run), _weights(smooth))


def test_only_what_was_handed_out_is_added(engine: Make) -> None:
    """Rows twice, rows never drawn, rows changed: each would void the bound or the sampling."""
    run = engine()
    with run.logical_step() as step:
        for part in step.parts(4):
            once = tuple(x[:1].expand_as(x).contiguous() for x in part)
            undrawn = tuple(x[:len(part[0])] for x in (X, Y))
            for batch in (once, undrawn, part[:1], tuple(x.clone() for x in part), (*part, X), ()):
                with pytest.raises(LedgerError, match="no part that is waiting"):
                    step.add(*batch)
            step.add(*part)
            with pytest.raises(LedgerError, match="no part that is waiting"):
                step.add(*part)
    assert run.steps_done == 1
    with pytest.raises(LedgerError, match="written to after"), run.logical_step() as step:
        part = next(step.parts())
        part[0].mul_(2)
        step.add(*part)
    with pytest.raises(LedgerError, match=r"\d of \d+ sampled rows"), run.logical_step() as step:
        parts = list(step.parts(4))
        step.add(*parts[-1])
    assert run.steps_done == 1


def test_an_augmentation_sees_one_row_at_a_time(engine: Make) -> None:
    sizes: list[int] = []

    def flipped(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(x))
        return x.flip(-1) * torch.rand(()).round(), y

    def run() -> Tensor:
        made = engine()
        with made.logical_step() as step:
            for part in step.parts(3, each=flipped):
                step.add(*part)
        return _weights(made)

    first = run()
    torch.manual_seed(99)  # a global seed has no say, so that a replay draws the same
    assert torch.equal(first, run()) and set(sizes) == {1}
    for wrong in (lambda x, y: x, lambda x, y: (x[:0], y), lambda x, y: (1.0, y)):
        with pytest.raises(ShapeError, match="one row each"), engine().logical_step() as step:
            next(step.parts(each=wrong))
    with pytest.raises(ConfigError, match="most must be"), engine().logical_step() as step:
        next(step.parts(0))


def test_engines_and_secrets_are_not_copied(engine: Make) -> None:
    import copy

    for value in (engine(), Secret(4)):
        for act in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(PrivacyError, match="pickled"):
                act(value)


def test_a_second_engine_waits_for_the_first_to_close(engine: Make) -> None:
    first = engine()
    optimizer = first.optimizer
    with pytest.raises(LedgerError, match=r"not closed.*close\(\).*a new optimizer"):
        engine(first.private, optimizer=optimizer)
    assert len(list(first)) == 4, "the first is not disturbed"
    first.close()
    second = engine(first.private, optimizer=optimizer)
    first.close()  # again: the second's guard stays
    with pytest.raises(LedgerError, match="not closed"):
        engine(first.private, optimizer=optimizer)
    with pytest.raises(LedgerError, match="no noise"):
        optimizer.step()
    assert len(list(second)) == 4
    second.close()
    with engine(first.private, optimizer=optimizer) as third:
        third.step()
    assert len(list(engine(first.private, optimizer=optimizer))) == 4
