"""The loops over a run: all its steps, or its steps by epoch, with checkpoints in between."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxperex.errors import LedgerError
from fxperex.privacy.records import interrupts
from fxperex.privacy.records.registered import Registered
from fxperex.privacy.records.spending import Books
from fxperex.privacy.sampling.poisson import Sampler
from fxperex.runtime.module import PerExampleModule, StepResult

logger = logging.getLogger("fxperex")


class Loop(ABC):
    """Takes the steps of a run one after another. `PrivacyEngine` is one."""

    private: PerExampleModule
    sampler: Sampler
    books: Books
    folder: Path | None
    registered: Registered
    steps_done: int
    generation: int
    _every: int
    _due: bool  # a checkpoint is to be written, after the user's own code of this step

    @abstractmethod
    def step(self) -> StepResult:
        """Takes one step."""

    @abstractmethod
    def checkpoint(self) -> None:
        """Writes a checkpoint."""

    def __len__(self) -> int:
        """Returns the number of steps of the whole run."""
        return self.sampler.steps

    def __iter__(self) -> Iterator[StepResult]:
        """Yields the StepResult of each remaining step, as far as the budget goes.

        With a folder, SIGTERM and Ctrl-C end the run after the current step, with a checkpoint.
        """
        return self._until(self.sampler.steps)

    def epochs(self) -> Iterator[tuple[int, Iterator[StepResult]]]:
        """Yields (epoch, its remaining steps): `for epoch, steps in engine.epochs(): for result in
        steps: ...`. An epoch takes each example once on average.

        An epoch that was left in the middle is yielded again. Raises LedgerError if no step of one
        is taken.
        """
        length = math.ceil(self.sampler.size / self.sampler.expected_batch)
        while self._left():
            before = self.steps_done
            epoch = before // length
            yield epoch, self._until(min((epoch + 1) * length, self.sampler.steps))
            if self.steps_done == before:
                raise LedgerError(f"no step of epoch {epoch} was taken: go through its steps, `for "
                                  "epoch, steps in engine.epochs(): for result in steps: ...`")

    def register(self, **objects: Any) -> None:
        """Saves the state of these with every checkpoint: a scheduler, a moving average, anything
        with `state_dict` and `load_state_dict`. In a resumed run each gets its state back now.

        Checkpoints are then written when the next step begins or the loop goes on, after your own
        code of this step. Raises ConfigError or LedgerError; then nothing is registered.
        """
        with self.private.ranks.every("register"):
            self.registered.add(objects)

    def _until(self, end: int) -> Iterator[StepResult]:
        with interrupts.held(self.folder is not None) as waiting:
            while self.steps_done < end and self._left() and not self._stopped(waiting):
                yield self.step()
                self._save_if_due()
            if self.folder is not None and self.steps_done % self._every:
                self.checkpoint()

    def _stepped(self) -> None:
        """Tells the log, and writes a checkpoint or leaves it to `_save_if_due`."""
        if self.steps_done % self._every == 0:
            logger.info("step %d of %d", self.steps_done, len(self))
            self._due = self.folder is not None
            if not self.registered:
                self._save_if_due()

    def _save_if_due(self) -> None:
        if self._due:
            self.checkpoint()

    def _stopped(self, waiting: interrupts.Waiting) -> bool:
        """Whether a signal came to any rank: all end before the same step."""
        waiting.signal = self.private.ranks.highest(waiting.signal)
        return bool(waiting.signal)

    def _left(self) -> bool:
        return self.steps_done < self.sampler.steps and self.books.fits(
            self.steps_done, self.generation)
