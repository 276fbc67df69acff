"""The private training loop: debit, sample, clip and sum, noise once, divide by a constant, update,
record.

sampler rows --private.sums--> sum --noise--> / divisor --gate, optimizer--> parameters; the ledger
knows all of it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fxperex.errors import BudgetError, LedgerError, PrivacyError
from fxperex.privacy import accountant, settings
from fxperex.privacy.checks import whole
from fxperex.privacy.gate import Gate
from fxperex.privacy.guarantee import Guarantee, guarantee, versions
from fxperex.privacy.logical_step import LogicalStep
from fxperex.privacy.noise.gaussian import Noise
from fxperex.privacy.noise.streams import Secret
from fxperex.privacy.records import facts, interrupts, training_state
from fxperex.privacy.records.folder import Folder
from fxperex.privacy.records.ledger import Counter, Ledger
from fxperex.privacy.records.spending import Books
from fxperex.privacy.sampling.poisson import Sampler
from fxperex.privacy.sampling.rows import Rows
from fxperex.runtime.module import PerExampleModule, StepResult


class PrivacyEngine:
    """Iterating it trains: one logical step of DP-SGD per item, which is that step's StepResult
    (not private).

    private: what `fxperex.transform` returned; optimizer: any first-order one over exactly its
    parameters.
    dataset: tuple of tensors, examples first, a map-style Dataset whose items are tuples of tensors
    (the first is read now, for its shapes), or `Units` of either, for units of several rows.
    expected_batch: mean number of examples per step, the constant that sums are divided by.
    noise_multiplier or epsilon: the noise in units of the bound, or what the whole run may spend at
    `delta`;
    budget: with noise_multiplier, an epsilon at which to stop, before the step that would pass it
    reads data.
    relation: "add-or-remove", "zero-out" or "replace" one example; sampling: "poisson", "shuffled"
    or a Sampler.
    noise: "gaussian", or "discrete" on an integer grid. secure: ChaCha20 (the default).
    account: "pld", "rdp", or "smaller" (the default): the smaller of these two bounds.
    seed: for reproducible science only; without it every key is the operating system's.
    folder: where ledger and checkpoints go, one every `checkpoint_every` steps; a run found there
    is gone on with. same_data: also binds the folder to the data's shapes and a few rows' values.
    workers: processes that read a Dataset; counter: see `fxperex.privacy.records.ledger`.
    Raises an FxperexError before anything is trained.

    When a step raises, its sum is cleared, its debit stands, and the next call takes it again with
    the same rows and noise. If it always raises, `leave_out` lets the run go on: the step is taken
    without those rows that fail by themselves. That is as private as any step, since what a row
    adds stays a function of this row and earlier releases alone. To pass over the whole step, or to
    release noise alone, would not be: one row would then take away what all others add. That a row
    failed is itself not private: errors, ledger and run time tell it, the parameters do not.
    """

    def __init__(self, private: PerExampleModule, optimizer: torch.optim.Optimizer, dataset: Any, *,
                 expected_batch: float, epochs: float, delta: float,
                 noise_multiplier: float | None = None, epsilon: float | None = None,
                 budget: float | None = None, relation: str = "add-or-remove",
                 sampling: str | Sampler = "poisson", noise: str = "gaussian",
                 account: str = "smaller", secure: bool | None = None, seed: int | None = None,
                 folder: str | Path | None = None, checkpoint_every: int = 50, workers: int = 0,
                 counter: Counter | None = None, same_data: bool = False) -> None:
        settings.check_private(private)
        settings.check_files(folder, secure, counter, same_data)
        wish = settings.Wish(expected_batch, epochs, delta, noise_multiplier, epsilon, budget,
                             relation, sampling, noise, account)
        self.private, self.delta, self.account = private, wish.delta, account
        self._wish, self._same_data = wish, same_data
        self.rows = Rows(dataset, workers)
        self._fits()
        self._every = whole(checkpoint_every, "checkpoint_every", 1)
        self.steps_done = self.generation = 0
        self._open: LogicalStep | None = None
        self._failed: tuple[int, int] | None = None
        self._gate = Gate(optimizer, private.parameters)
        self._folder: Folder | None = None
        try:
            self.folder = None if folder is None else Path(folder)
            self._folder = None if self.folder is None else Folder(self.folder, seed, secure,
                                                                   counter)
            self._secret = self._folder.secret if self._folder else Secret(seed, secure)
            self.sampler = settings.make_sampler(wish, self.rows.size, self._secret)
            self.mechanism = settings.make_mechanism(wish, private, self.sampler)
            self._noise = Noise(self.mechanism, self._secret)
            self._resume()
            ledger = self._folder.ledger if self._folder else Ledger(self._secret.key("ledger"))
            self.books = Books(ledger, self.sampler,
                               settings.most_units(wish, self.mechanism, self.sampler))
            if self._folder is not None and not any(ledger.of("checkpoint")):
                self.checkpoint()
        except BaseException:
            self.close()
            raise

    @property
    def randomness(self) -> Secret:
        """The root of the run's randomness."""
        return self._secret

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._gate.optimizer

    @property
    def noise_multiplier(self) -> float:
        return self.mechanism.noise_multiplier

    def __len__(self) -> int:
        """Returns the number of steps of the whole run."""
        return self.sampler.steps

    def __iter__(self) -> Iterator[StepResult]:
        """Yields the StepResult of each remaining step, as far as the budget goes.

        With a folder, SIGTERM and Ctrl-C end the run after the step at hand, with a checkpoint.
        """
        with interrupts.held(self._folder is not None) as waiting:
            while self._left() and not waiting.signal:
                yield self.step()
            if self._folder is not None and self.steps_done % self._every:
                self.checkpoint()

    def step(self) -> StepResult:
        """Returns the StepResult of one logical step, taken.

        Raises BudgetError past the end, having read no data, and PrivacyError for what reading the
        rows or the model on them raises. If anything raises before noise was drawn, the sum is
        cleared and the next call takes the same step again.
        """
        try:
            return self._step()
        except _Differs:
            # The sum is not the one this step released before a crash: the same noise on it could
            # be subtracted.
            self.generation = self.books.next_generation
            return self._step()

    def leave_out(self) -> None:
        """Has the step that raised taken, by the next call, without the rows that fail.

        It is recorded in the ledger, and a replay after a crash does the same. Rows are tried once
        more, then each by itself. Raises LedgerError unless a step has just failed over its rows.
        """
        if self._failed != (self.steps_done, self.generation):
            raise LedgerError("leave_out() is for a step that has just raised while its rows were "
                              "read or run; no such step waits. Call step()")
        self.books.leave_out(self.steps_done, self.generation)

    def logical_step(self) -> LogicalStep:
        """Returns the next step as a context, for loops of your own; see `LogicalStep`."""
        return LogicalStep(self, self._release)

    def epsilon(self, delta: float | None = None, method: str | None = None) -> float:
        """Returns the epsilon spent so far at `delta` (default: the run's).

        method: another account than the run's. Raises ConfigError.
        """
        return accountant.epsilon_of(self.sampler, self.noise_multiplier,
                                     self.delta if delta is None else delta, self.books.units,
                                     method=method or self.account,
                                     relation=self.mechanism.relation)

    def guarantee(self) -> Guarantee:
        """Returns what is claimed so far, everything it rests on, and what is not covered: `str()`
        and `to_json()`.
        """
        return guarantee(self)

    def checkpoint(self) -> None:
        """Writes a checkpoint to the folder. Raises LedgerError, also without a folder."""
        if self._folder is None:
            raise LedgerError("an engine without a folder has nowhere to write; make it with "
                              "folder=...")
        if self._open is not None:
            raise LedgerError("a checkpoint inside a logical step would hold half of it; leave "
                              "the step first")
        tensors, plain = training_state.capture(self.private.model, self._gate.optimizer)
        adaptive = self.mechanism.adaptive
        self._folder.save(
            tensors, {
                "step": self.steps_done, "generation": self.generation, "optimizer": plain,
                "clip bound": adaptive and adaptive.bound, "plan": str(
                    self.private.plan), "versions": versions()
            })

    def close(self) -> None:
        """Lets go of the folder and of the optimizer, which then steps unguarded."""
        self._gate.close()
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
        """Debits `step`; for LogicalStep. Raises an FxperexError before that where the step could
        not be taken: nothing is read or spent."""
        if self._open is not None or step.step != self.steps_done:
            raise LedgerError("another logical step is open or was taken since; steps are taken "
                              "one at a time")
        if self.steps_done >= self.sampler.steps:
            raise BudgetError(f"all {self.sampler.steps} steps that the noise was planned for are "
                              "taken; more would spend more than asked. Make an engine with more "
                              "epochs")
        self._gate.check()
        self.private.check_model()
        if self.private.clip is not self.mechanism.clip or not self.mechanism.holds:
            raise PrivacyError(f"clip.sensitivity changed to {self.private.clip.sensitivity} "
                               "since the engine was made; the noise is for a bound of "
                               f"{self.mechanism.bound}. Make a new engine")
        self._gate.clear()
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
                step.add(*part)
        if self._folder is not None and self.steps_done % self._every == 0:
            self.checkpoint()
        return step.result

    def _release(self, step: LogicalStep) -> None:
        """The one place where anything leaves: records the sum, draws the noise, updates, records
        that.
        """
        assert step.sums is not None
        self._record(step)
        # Counted before anything is released: a failure from here on is paid for, and its noise
        # never used again.
        self.steps_done += 1
        means = self._noise.release(step.sums, step.step, step.generation)
        adaptive = self.mechanism.adaptive
        if adaptive is not None:
            means = [m.mul_(adaptive.bound) for m in means]
            adaptive.update(
                self._noise.count(adaptive.below(step.result.norms), step.step, step.generation))
        self._gate.update(means)
        self.books.ledger.append("commit", sync=False, step=step.step, generation=step.generation)

    def _record(self, step: LogicalStep) -> None:
        if self._folder is None:
            return
        digest = self._digest(step)
        recorded = self.books.recorded(step.step, step.generation)
        if recorded is None:
            self.books.summed(step.step, step.generation, digest)
        elif not hmac.compare_digest(recorded, digest):
            raise _Differs("the sum of this step is not bit for bit the one that was released "
                           "before the crash; call step() and it is drawn afresh, with a debit of "
                           "its own")

    def _digest(self, step: LogicalStep) -> str:
        assert step.sums is not None
        digest = hashlib.blake2b(key=self._secret.key("sum", step.generation), digest_size=32)
        counted = [] if self.mechanism.adaptive is None else [
            torch.tensor(self.mechanism.adaptive.below(step.result.norms))
        ]
        for total in [*step.sums, *counted]:
            digest.update(facts.raw(total))
        return digest.hexdigest()

    def _resume(self) -> None:
        if self._folder is None:
            return
        loaded = self._folder.load()
        self._folder.claim(facts.facts(self, self._wish, self._same_data))
        if loaded is not None:
            tensors, plain = loaded
            training_state.restore(self.private.model, self._gate.optimizer, tensors,
                                   plain["optimizer"])
            self.steps_done, self.generation = plain["step"], plain["generation"]
            if self.mechanism.adaptive is not None:
                self.mechanism.adaptive.bound = plain["clip bound"]
            self._folder.ledger.append("resume", step=self.steps_done)

    def _fits(self) -> None:
        """Raises ShapeError now, and not after a debit, if the data set is not what the step
        takes.
        """
        device = next(iter(self.private.parameters.values())).device
        self.private.check(*(x.to(device) for x in self.rows.nothing))

    def _left(self) -> bool:
        return self.steps_done < self.sampler.steps and self.books.fits(
            self.steps_done, self.generation)


class _Differs(LedgerError):
    """A replayed step summed to something else."""
