"""One logical step as a transaction: it owns the sum; all of it is released, noised, or nothing.

begin (debit, on disk) -> parts -> add -> commit: record the sum -> noise -> update. Leaving early
clears the sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from fxperex.errors import FxperexError, LedgerError, PrivacyError
from fxperex.privacy.checks import whole_number
from fxperex.privacy.parts import Batch, EachRow, Parts, row_by_row
from fxperex.privacy.run import PrivateRun
from fxperex.privacy.sampling.rows import STANDS
from fxperex.runtime.step_result import StepResult


class StepKeeper(PrivateRun, Protocol):
    """A run that takes its steps one at a time."""

    def begin(self, step: LogicalStep) -> None:
        """Debits `step`. Raises an FxperexError, before anything is read, if it may not begin."""

    def end(self, step: LogicalStep) -> None:
        """Closes `step`, committed or not."""


class LogicalStep:
    """A context: `for part in step.parts(): step.add(*part)` inside it; commits when left whole.

    Made by `PrivacyEngine.logical_step`. Left by an exception or with parts missing, the sum is
    cleared; the debit stands and the next step is this one again. Raises LedgerError for parts out
    of order, missing, added twice, changed, or not handed out by `parts`.

    After `PrivacyEngine.leave_out`, a row that cannot be read, or that the private step raises for
    when run on it alone, adds exactly nothing, as a row whose gradient is not finite.
    """

    def __init__(self, engine: StepKeeper, release: Callable[[LogicalStep], None]) -> None:
        self._engine, self._release = engine, release
        self.step, self.generation = engine.steps_done, engine.generation
        self.sums: list[Tensor] | None = None
        self.failed = False  # reading a part or running the private step on it has raised
        self._shortened = engine.books.leaves_out(self.step, self.generation)
        self._results: list[StepResult] = []
        self._parts = Parts()
        self._expected: int | None = None
        self._size = engine.private.plan.rows  # rows of a part
        self._token = 0  # of the rows that all ranks together run
        self._count = 0  # rows added or left out
        self._yielded = 0
        self._state = "new"

    def __enter__(self) -> LogicalStep:
        if self._state != "new":
            raise LedgerError("a logical step is entered once; ask the engine for another")
        self._state = "open"
        try:
            self._engine.begin(self)
        except BaseException:  # Python does not leave what was never entered
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self._agree(error)
            if kind is None:
                self._release(self)
        finally:
            self._close()

    def _agree(self, error: BaseException | None) -> None:
        """Raises unless this step is whole on all ranks; `error`: what this one has raised."""
        ranks = self._engine.private.ranks
        try:
            with ranks.every(f"step {self.step}", error, self._token):
                if error is None:
                    self._check("commit")
                    if self._count != self._expected or self.sums is None:
                        raise LedgerError(f"the logical step was left with {self._count} of "
                                          f"{self._expected} sampled rows added; its sum is "
                                          "cleared. Add every part that parts() yields")
        except FxperexError:
            # Of another rank, perhaps: leave_out() is called on all ranks or on none.
            self.failed = self.failed or ranks.size > 1
            raise

    def _close(self) -> None:
        self._state, self.sums = "closed", None
        self._parts.clear()
        self._engine.end(self)

    def parts(self, most: int | None = None, each: EachRow | None = None) -> Iterator[Batch]:
        """Yields the sampled batch in parts, on the model's device, each to be added once.

        most: rows of a part at most; default the physical batch. each: an augmentation, called as
        `each(*tensors [1, ...])` with one row at a time, so that no row can see another; it
        returns the tensors to be added. Raises LedgerError, PrivacyError or ShapeError.
        """
        self._check("parts")
        if self._expected is not None:
            raise LedgerError("parts() of a logical step is gone through once: every sampled row "
                              "is added once")
        if most is not None:
            self._size = whole_number(most, "most", 1)
        drawn = self._engine.sampler.rows(self.step, self.generation)
        self._token = _token(drawn, self._size)
        rows, size = self._engine.private.ranks.share(drawn, self._size), self._size
        self._expected = len(rows)
        batches = self._readable(rows, size) if self._shortened else self._read(rows, size)
        empty = True
        for batch in batches:
            empty = False
            yield self._handed(batch, each)
        if empty:  # every row was left out: what remains is the noise
            yield self._handed(self._engine.rows.nothing, None)

    def add(self, *batch: Tensor) -> StepResult:
        """Returns the StepResult (not private) of one part; its clipped sum joins the step's.

        Raises LedgerError unless `batch` is a part as `parts` handed it out, and PrivacyError
        if the private step raises anything that is no FxperexError.
        """
        self._check("add")
        self._parts.check(batch)
        private = self._engine.private
        device = next(iter(private.parameters.values())).device
        # Dropout and the like draw from torch's global generator: keyed, so that a replay after a
        # crash draws the same.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed("model", self._count))
            result, sums = self._sums(batch)
        self._parts.remove(batch)
        self._count += len(batch[0])
        self._join(sums)
        self._results.append(result)
        return result

    @property
    def result(self) -> StepResult:
        """The StepResult of all parts together. Not private."""
        return _joined(self._results)

    def _read(self, rows: Tensor, most: int) -> Iterator[Batch]:
        try:
            yield from self._engine.rows.parts(rows, most)
        except Exception:
            self.failed = True
            raise

    def _readable(self, rows: Tensor, most: int) -> Iterator[Batch]:
        for count, batch in self._engine.rows.readable(rows, most):
            if batch is None:
                self._count += count
            else:
                yield batch

    def _handed(self, batch: Batch, each: EachRow | None) -> Batch:
        device = next(iter(self._engine.private.parameters.values())).device
        if each is not None and len(batch[0]):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed("augmentation", self._yielded))
                batch = row_by_row(batch, each)
        part = tuple(x.to(device) for x in batch)
        self._parts.hand_out(part)
        self._yielded += len(part[0])
        return part

    def _sums(self, batch: Batch) -> tuple[StepResult, list[Tensor]]:
        try:
            return self._sums_of(batch)
        except Exception as e:  # whatever the user's model raises
            self.failed = True
            if isinstance(e, FxperexError):
                e.add_note(f"Step {self.step}: {STANDS}")
                raise
            raise PrivacyError(f"step {self.step} raised {type(e).__name__}: {e}. {STANDS}") from e

    def _sums_of(self, batch: Batch) -> tuple[StepResult, list[Tensor]]:
        if not self._shortened:
            return self._engine.private.sums(*batch)
        try:
            return self._engine.private.sums(*batch)
        except Exception:
            return self._alone(batch)

    def _alone(self, batch: Batch) -> tuple[StepResult, list[Tensor]]:
        """Returns what the rows of `batch` add that the step takes by themselves.

        Raises what the step raises for no rows at all: then it is none of theirs.
        """
        private = self._engine.private
        # Not of `batch`, whose rows may have a shape that the step does not take.
        result, sums = private.sums(*(x.to(batch[0].device) for x in self._engine.rows.nothing))
        results = [result]
        for i in range(len(batch[0])):
            try:
                result, more = private.sums(*(x[i:i + 1] for x in batch))
            except Exception:  # whatever the user's model raises for this row
                continue
            results.append(result)
            sums = [s.add_(m) for s, m in zip(sums, more, strict=True)]
        return _joined(results), sums

    def _join(self, sums: list[Tensor]) -> None:
        with torch.no_grad():
            # In float64 the sum of float32 parts does not depend on their order.
            self.sums = list(sums) if self.sums is None else [
                s.double().add_(f) for s, f in zip(self.sums, sums, strict=True)]

    def _seed(self, purpose: str, count: int) -> int:
        """A seed for the row after `count` of this rank's: that of its place in the draw."""
        row = self._engine.private.ranks.place(count, self._size)
        streams = self._engine.randomness.streams(purpose, self.generation)
        return int(streams.bits(1, self.step, row)[0] >> 1)

    def _check(self, what: str) -> None:
        if self._state != "open":
            raise LedgerError(f"{what} outside its logical step, which is {self._state}; use it as "
                              "`with engine.logical_step()`")


def _token(drawn: Tensor, size: int) -> int:
    """A number for the rows of a step and the size of its parts, below 2^62."""
    digest = hashlib.sha256(drawn.cpu().numpy().tobytes() + str(size).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def _joined(results: list[StepResult]) -> StepResult:
    names = ("losses", "norms", "factors")
    return StepResult(*(torch.cat([getattr(r, n) for r in results]) for n in names))
