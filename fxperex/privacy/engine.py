"""The private training loop: debit, sample, clip and sum, noise once, divide by a constant, update.

sampler rows --private.sums--> sum --noise--> / divisor --gate, optimizer--> parameters. The ledger
records each of these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fxperex.capture.structure import as_arguments
from fxperex.errors import BudgetError, LedgerError, PrivacyError
from fxperex.privacy import accountant, on_ranks, settings
from fxperex.privacy.checks import whole_number
from fxperex.privacy.gate import Gate
from fxperex.privacy.guarantee import Guarantee, guarantee
from fxperex.privacy.logical_step import LogicalStep
from fxperex.privacy.loop import Loop, logger
from fxperex.privacy.noise.gaussian import Noise
from fxperex.privacy.records import facts, training_state
from fxperex.privacy.records.folder import Folder
from fxperex.privacy.records.ledger import Counter, Ledger
from fxperex.privacy.records.registered import Registered
from fxperex.privacy.records.shared import open_folder, open_secret
from fxperex.privacy.records.spending import Books
from fxperex.privacy.release import Release, ReplayDiffers
from fxperex.privacy.sampling.poisson import Sampler
from fxperex.privacy.sampling.rows import Rows
from fxperex.ranks import ALONE
from fxperex.runtime.module import PerExampleModule, StepResult


class PrivacyEngine(Loop):
    """Trains a model privately: iterating it takes one logical step of DP-SGD per item, and yields
    that step's StepResult (not private).

    private: what `fxperex.transform` returned.
    optimizer: any first-order one over exactly the parameters of `private`.
    dataset: a tuple or mapping of tensors or numpy arrays (memory maps too), examples first; or a
    map-style Dataset whose items are tuples or mappings of tensors, arrays and numbers (the first
    is read now, for its shapes); or `Units` of either. collate_fn: makes a batch of one row of
    `[item]`; it is called for one item at a time, so that no row can see another.
    expected_batch: mean number of examples per step; sums are divided by this constant.
    noise_multiplier: noise in units of the bound; or epsilon: what the run may spend at `delta`.
    budget: with noise_multiplier, an epsilon; the run stops before a step that would exceed it.
    relation: "add-or-remove", "zero-out" or "replace" one example.
    sampling: "poisson", "shuffled" or a Sampler. noise: "gaussian", or "discrete" on a grid.
    account: "pld", "rdp", or "smaller" (the default): the smaller of these two bounds.
    secure: ChaCha20 (the default). seed: for repeatable science; without it keys are secret.
    folder: for the ledger, and a checkpoint every `checkpoint_every` steps; an existing run there
    is resumed. same_data: also binds the folder to the data's shapes and a few rows' values.
    workers: processes that read a Dataset, the same in every step.
    counter: see `fxperex.privacy.records.ledger`.
    Raises an FxperexError before anything is trained.

    When a step raises, its sum is cleared, its debit stands, and the next call takes it again with
    the same rows and noise. If it always raises, call `leave_out`: the step is taken without the
    rows that fail by themselves. This is as private as any step: what a row adds stays a function
    of this row and earlier releases alone. Skipping the step, or releasing noise alone, would not
    be: one row would then remove what all others add. That a row failed is itself not private:
    errors, ledger and run time show it, the parameters do not.
    """

    def __init__(self, private: PerExampleModule, optimizer: torch.optim.Optimizer, dataset: Any, *,
                 expected_batch: float, epochs: float, delta: float,
                 noise_multiplier: float | None = None, epsilon: float | None = None,
                 budget: float | None = None, relation: str = "add-or-remove",
                 sampling: str | Sampler = "poisson", noise: str = "gaussian",
                 account: str = "smaller", secure: bool | None = None, seed: int | None = None,
                 folder: str | Path | None = None, checkpoint_every: int = 50, workers: int = 0,
                 counter: Counter | None = None, same_data: bool = False,
                 collate_fn: Callable[[list[Any]], Any] | None = None) -> None:
        self.steps_done = self.generation = 0
        self.registered, self._due = Registered(), False
        self._open: LogicalStep | None = None
        self._failed: tuple[int, int] | None = None
        self._folder: Folder | None = None
        ranks = getattr(private, "ranks", ALONE)
        try:
            with ranks.every("the engine"):
                settings.check_private(private)
                settings.check_files(folder, secure, counter, same_data)
                asked = settings.Settings(expected_batch, epochs, delta, noise_multiplier, epsilon,
                                          budget, relation, sampling, noise, account)
                self.private, self.delta, self.account = private, asked.delta, account
                self._settings, self._same_data = asked, same_data
                self.rows = Rows(dataset, workers, collate_fn)
                settings.check_data(private, self.rows)
                self._every = whole_number(checkpoint_every, "checkpoint_every", 1)
                self._gate = Gate(optimizer, private.parameters)
                self.folder = None if folder is None else Path(folder)
            on_ranks.check_alike(self, asked.described | {
                "folder": self.folder, "seed": seed, "secure": secure, "same_data": same_data,
                "checkpoint_every": checkpoint_every, "counter": counter is not None})
            self._make(seed, secure, counter)
        except BaseException:
            self.close()
            raise

    def _make(self, seed: int | None, secure: bool | None, counter: Counter | None) -> None:
        """Opens the folder, resumes its run if there is one, and makes the parts of a step."""
        ranks, asked = self.private.ranks, self._settings
        if self.folder is not None:
            self._folder = open_folder(ranks, self.folder, seed, secure, counter)
            self.randomness = self._folder.secret
        else:
            self.randomness = open_secret(ranks, seed, secure)
        with ranks.every("the engine"):
            self.sampler = settings.make_sampler(asked, self.rows.size, self.randomness)
            self.mechanism = settings.make_mechanism(asked, self.private, self.sampler)
        on_ranks.check_draws(self)
        self._resume()
        ledger = self._folder.ledger if self._folder else Ledger(self.randomness.key("ledger"))
        limit = settings.most_units(asked, self.mechanism, self.sampler)
        self.books = Books(ledger, self.sampler, limit)
        dtypes = [p.dtype for p in self.private.parameters.values()]
        self._releases = Release(Noise(self.mechanism, self.randomness), self.books,
                                 self._folder is not None, dtypes, ranks)
        if self._folder is not None and not any(ledger.of("checkpoint")):
            self.checkpoint()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._gate.optimizer

    @property
    def noise_multiplier(self) -> float:
        return self.mechanism.noise_multiplier

    def __repr__(self) -> str:
        return (f"PrivacyEngine(step {self.steps_done} of {len(self)}, {self.sampler!r}, noise "
                f"multiplier {self.noise_multiplier:.4g}, delta {self.delta:g}, folder "
                f"{self.folder})")

    def step(self) -> StepResult:
        """Returns the StepResult of one logical step, taken.

        Raises BudgetError past the end, before any data is read, and PrivacyError for what the data
        set or the model raises. If anything raises before noise is drawn, the sum is cleared and
        the next call takes the same step again.
        """
        try:
            return self._step()
        except ReplayDiffers:
            # The same noise on another sum could be subtracted.
            self.generation = self.books.next_generation
            return self._step()

    def leave_out(self) -> None:
        """Lets the next call take the step that raised without the rows that fail.

        The ledger records it, and a replay after a crash does the same. Rows are tried once more,
        then each by itself. Raises LedgerError unless a step has just failed over its rows.
        """
        with self.private.ranks.every("leave_out"):
            if self._failed != (self.steps_done, self.generation):
                raise LedgerError("leave_out() is for a step that has just raised while its rows "
                                  "were read or run; no such step waits. Call step()")
        self.books.leave_out(self.steps_done, self.generation)

    def logical_step(self) -> LogicalStep:
        """Returns the next step as a context, for loops of your own; see `LogicalStep`."""
        return LogicalStep(self, self._release)

    def epsilon(self, delta: float | None = None, method: str | None = None) -> float:
        """Returns the epsilon spent so far at `delta` (default: the run's).

        method: another account than the run's. Raises ConfigError.
        """
        return accountant.epsilon_of(
            self.sampler, self.noise_multiplier, self.delta if delta is None else delta,
            self.books.units, method=method or self.account, relation=self.mechanism.relation)

    def guarantee(self) -> Guarantee:
        """Returns what is claimed so far, what it rests on, and what it does not cover."""
        return guarantee(self)

    def checkpoint(self) -> None:
        """Writes a checkpoint to the folder. Raises LedgerError, also without a folder."""
        if self._folder is None:
            raise LedgerError("an engine without a folder has nowhere to write; make it with "
                              "folder=...")
        if self._open is not None:
            raise LedgerError("a checkpoint inside a logical step would hold half of it; leave "
                              "the step first")
        self._folder.save(*training_state.capture_run(self))
        self._due = False
        logger.info("checkpoint of step %d of %d in %s", self.steps_done, len(self), self.folder)

    def close(self) -> None:
        """Lets go of the folder and of the optimizer, which then steps unguarded."""
        if hasattr(self, "_gate"):
            self._gate.close()
        if hasattr(self, "rows"):
            self.rows.close()
        if self._folder is not None:
            self._folder.ledger.close()

    def __enter__(self) -> PrivacyEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise PrivacyError("an engine cannot be copied or pickled: two that go on with one run "
                           "would draw the same noise. Make it with folder=..., and again in the "
                           "other process after this one is closed")

    def begin(self, step: LogicalStep) -> None:
        """Debits `step`; for LogicalStep. Raises an FxperexError if the step cannot be taken:
        then nothing is read or spent.
        """
        with self.private.ranks.every(f"the beginning of step {step.step}"):
            if self._open is not None or step.step != self.steps_done:
                raise LedgerError("another logical step is open or was taken since; steps are "
                                  "taken one at a time")
            if self.steps_done >= self.sampler.steps:
                raise BudgetError(f"all {self.sampler.steps} steps that the noise was planned for "
                                  "are taken; more would spend more than asked. Make an engine "
                                  "with more epochs")
            self.registered.check()
            self._gate.check()
            self.private.check_model()
            self.mechanism.check(self.private.clip)
            self._gate.clear()
        self._save_if_due()
        # On several ranks: on rank 0's disk before any of them reads a row.
        self.books.begin(step.step, step.generation)
        self._open = step

    def end(self, step: LogicalStep) -> None:
        """Closes `step`; for LogicalStep."""
        if self._open is step:
            self._open = None
            if step.failed:
                self._failed = step.step, step.generation

    def _step(self) -> StepResult:
        with self.logical_step() as step:
            for part in step.parts():
                step.add(*as_arguments(part))
        self._stepped()
        return step.result

    def _release(self, step: LogicalStep) -> None:
        """Records the sum, draws the noise, updates the parameters, and records that."""
        totals = self._releases.record(step)
        # Counted before anything is released: a failure from here on is paid for, and its noise
        # is never used again.
        self.steps_done += 1
        means = self._releases.means(step, totals)
        with self.private.ranks.every(f"the update of step {step.step}"):
            self._gate.update(means)
        self.books.ledger.append("commit", sync=False, step=step.step, generation=step.generation)

    def _resume(self) -> None:
        if self._folder is None:
            return
        loaded = self._folder.load()
        with self.private.ranks.every("the engine"):
            bound = facts.facts(self, self._settings, self._same_data)
        self._folder.claim(bound)
        if loaded is not None:
            with self.private.ranks.every("the resumed run"):
                training_state.restore_run(self, *loaded)
            self._folder.ledger.append("resume", step=self.steps_done)
