"""One logical step as a transaction: it owns the sum, and either all of it is released, noised, or nothing is.

begin (debit, on disk) -> parts -> add -> commit: record the sum -> noise -> update. Leaving early clears the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxperex.errors import LedgerError
from fxperex.runtime import StepResult

if TYPE_CHECKING:
    from fxperex.privacy.engine import PrivacyEngine


class LogicalStep:
    """A context: `for part in step.parts(): step.add(*part)` inside it, and it commits when left whole.

    Made by `PrivacyEngine.logical_step`. Left by an exception or with parts missing, the sum is cleared; the debit stands
    and the next step is this one again. Raises LedgerError for parts out of order, missing or added twice.
    """

    def __init__(self, engine: PrivacyEngine, release: Callable[[LogicalStep], None]) -> None:
        self._engine, self._release = engine, release
        self.step, self.generation = engine.steps_done, engine.generation
        self.sums: list[Tensor] | None = None
        self._results: list[StepResult] = []
        self._expected: int | None = None
        self._given = 0
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._check("commit")
                if self._given != self._expected:
                    raise LedgerError(f"the logical step was left with {self._given} of {self._expected} sampled rows added; its "
                                      "sum is cleared. Add every part that parts() yields")
                self._release(self)
        finally:
            self._close()

    def _close(self) -> None:
        self._state, self.sums = "closed", None
        self._engine.end(self)

    def parts(self, most: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """Yields the sampled batch in parts of at most `most` rows (default: the physical batch), each to be added."""
        self._check("parts")
        if self._expected is not None:
            raise LedgerError("parts() of a logical step is gone through once: every sampled row is added once")
        rows = self._engine.sampler.rows(self.step, self.generation)
        self._expected = len(rows)
        yield from self._engine.rows.parts(rows, most or self._engine.private.plan.rows)

    def add(self, *batch: Tensor) -> StepResult:
        """Returns the StepResult (not private) of one part, whose clipped sum is now part of the step's."""
        self._check("add")
        private = self._engine.private
        device = next(iter(private.parameters.values())).device
        # Dropout and the like draw from torch's global generator: keyed, so that a replay after a crash draws the same.
        seed = int(self._engine.randomness.streams("model", self.generation).bits(1, self.step, self._given)[0] >> 1)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            result, sums = private.sums(*(x.to(device) for x in batch))
        if self._expected is None or self._given + len(result.norms) > self._expected:
            raise LedgerError(f"{len(result.norms)} rows were added to {self._given} of {self._expected or 0} sampled ones; only "
                              "what parts() yields may be added, once")
        self._given += len(result.norms)
        with torch.no_grad():
            self.sums = list(sums) if self.sums is None else [s.add_(f) for s, f in zip(self.sums, sums, strict=True)]
        self._results.append(result)
        return result

    @property
    def result(self) -> StepResult:
        """The StepResult of all parts together. Not private."""
        found = self._results
        return StepResult(*(torch.cat([getattr(r, n) for r in found]) for n in ("losses", "norms", "factors")))

    def _check(self, what: str) -> None:
        if self._state != "open":
            raise LedgerError(f"{what} outside its logical step, which is {self._state}; use it as `with engine.logical_step()`")
