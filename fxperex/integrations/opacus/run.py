"""One private training run in the user's own loop: batches go out, losses come back, steps are
taken.

loader: part of the draw -> the user's forward and loss -> backward: the part joins the sum ->
optimizer.step: after the last part, noise and update. The loss is known at the first backward. Only
then the step is made and the account opened; the first part is handed out before.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fxperex
from fxperex.errors import BudgetError, ConfigError, LedgerError, ShapeError, StateError
from fxperex.integrations.opacus.account import Account, Spent
from fxperex.integrations.opacus.formula import Formula
from fxperex.integrations.opacus.rows import History, plain
from fxperex.integrations.opacus.settings import Settings
from fxperex.integrations.opacus.values import Value
from fxperex.privacy import PrivacyEngine, Sampler
from fxperex.privacy.logical_step import LogicalStep
from fxperex.privacy.sampling.rows import Rows
from fxperex.runtime.module import PerExampleModule

Batch = tuple[Tensor, ...]
# Steps of a run that was given noise and no epochs: as many as anyone takes.
ENDLESS = 2**40
# An engine reports epsilon at a delta of its own; here delta is asked for in `get_epsilon`.
UNUSED_DELTA = 1e-5


@dataclass
class _Part:
    """A part of a step's draw.

    history: of what the user holds; drawn: what joins the sum, the same rows.
    """

    history: History
    drawn: Batch | None
    closes: bool
    formula: Formula | None = None  # of the loss whose gradients joined the sum
    stepped: bool = False


class Run:
    """See the module. noise_multiplier and max_grad_norm may change between steps.

    A change opens another account, and a new bound another private step.
    """

    def __init__(self, asked: Settings, noise_multiplier: float, max_grad_norm: Any,
                 account: Account) -> None:
        self.asked, self.account = asked, account
        self.noise_multiplier, self.max_grad_norm = noise_multiplier, max_grad_norm
        self.rows = Rows(asked.dataset, asked.workers, asked.collate_fn)
        if not isinstance(self.rows.nothing, tuple):
            raise ShapeError("an item of the data set must be a tuple of tensors here; got "
                             f"{type(self.rows.nothing).__name__}. For mappings use "
                             "fxperex.privacy.PrivacyEngine")
        self.updates = 0
        self._setting: tuple[Any, ...] = ()
        self._private: PerExampleModule | None = None
        self._sampler: Sampler | None = None
        self._engine: PrivacyEngine | None = None
        self._formula: Formula | None = None
        self._autocast: torch.dtype | None = None
        self._step: LogicalStep | None = None
        self._parts: Iterator[Batch] = iter(())
        self._part: _Part | None = None
        self._most: int | None = None
        self._values: list[weakref.ref[Value]] = []
        account.attach(self.spent)

    # What the model, the loss and the optimizer ask.

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Returns the private model's output as a formula."""
        kind = self._device.type
        self._autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return Value(self, None, args, kwargs, self.updates)

    def note(self, value: Value) -> None:
        """Remembers a value as long as anyone holds it, until the next update."""
        self._values.append(weakref.ref(value))

    def numbers(self, value: Value) -> Any:
        """Returns what the model returns. Raises StateError if it was updated since."""
        if value.updates != self.updates:
            raise StateError("numbers of an output were asked for after the update that followed "
                             "it, and the parameters are others now. Ask for them (argmax, item, "
                             "numpy) before optimizer.step()")
        args, kwargs = pytree.tree_map(plain, value.call[1:])
        with torch.autocast(self._device.type, self._autocast, self._autocast is not None):
            return self.asked.module(*args, **kwargs)

    def backward(self, loss: Value) -> Tensor:
        """Returns the mean loss; the part's clipped sum has joined the step's. Raises an
        FxperexError.
        """
        part = self._part
        if part is None:
            raise LedgerError("backward() outside an iteration of the private data loader: no row "
                              "was drawn. Loop over what make_private returned")
        if part.formula is not None:
            raise LedgerError("backward() was called twice for one batch; each row counts once")
        formula = Formula(loss, part.history)
        if self._formula is not None:
            self._formula.check(formula)
        if self._step is None:
            self._begin(formula)
        assert self._step is not None and part.drawn is not None
        result = self._step.add(*part.drawn)
        part.formula = formula
        return result.losses.mean().to(torch.float32)

    def update(self) -> bool:
        """Returns True if this was the last part: noise is added and the parameters are updated.

        Raises LedgerError, and what the engine raises.
        """
        part = self._part
        if part is None or part.formula is None or part.stepped:
            raise LedgerError("optimizer.step() without a backward() of a batch of the private "
                              "loader before it: nothing was drawn that could be released")
        part.stepped = True
        self._settle(part.formula)
        if not part.closes:
            return False
        step, self._step = self._step, None
        assert step is not None
        step.__exit__(None, None, None)
        self.updates += 1
        return True

    def _settle(self, formula: Formula) -> None:
        """Gives numbers to what was computed of outputs beside the loss: soon they are others."""
        assert self._formula is not None
        for reference in self._values:
            value = reference()
            if value is not None and id(value) not in self._formula.values and (
                    value.has_numbers or id(value) not in formula.values):
                value.settle()
        self._values = []

    # What the loader asks.

    def logical_step(self, most: int | None) -> Iterator[list[Tensor]]:
        """Yields the parts of one draw, each of at most `most` rows. Raises an FxperexError."""
        if self._part is not None:
            raise LedgerError("another loop over the private data loader is open; batches are "
                              "drawn one step at a time")
        self._most = most
        self._follow_settings()
        parts = self._open() if self._engine is not None else self._trial()
        self._parts = parts
        count, total = 0, self._drawn()
        try:
            while (drawn := next(self._parts, None)) is not None:
                count += len(drawn[0])
                own = None if self._step is None else drawn
                self._part = _Part(History(drawn), own, count >= total)
                yield list(self._part.history.batch)
                self._check_used(self._part)
        finally:
            self._abandon()

    def spent(self) -> Spent | None:
        """Returns what the engine that is open has spent; for the account."""
        if self._engine is None or self._engine.books.units == 0:
            return None
        asked = self.asked
        return Spent(self.rows.size, asked.expected_batch, asked.poisson,
                     self._engine.noise_multiplier, self._engine.books.units)

    @property
    def _device(self) -> torch.device:
        return next(self.asked.module.parameters()).device

    def _remaining(self) -> int:
        planned = self.asked.steps
        if planned is None:
            return ENDLESS
        if self.updates >= planned:
            raise BudgetError(f"all {planned} steps that the noise was planned for are taken; more "
                              "would spend more than target_epsilon. Ask for more epochs")
        return planned - self.updates

    def _follow_settings(self) -> None:
        """Opens a sampler, and an engine once the loss is known, if noise or bound is another."""
        setting = (self.noise_multiplier, self.max_grad_norm)
        if setting == self._setting:
            self._remaining()
            return
        seed = self.asked.seed
        if seed is not None:  # no two engines may draw the same noise
            seed += self.account.steps
        self._sampler = self.asked.sampler(self.rows.size, self._remaining(), seed)
        self.close()
        same_bound = self._setting[1:] == setting[1:]
        private = self._private if same_bound else None
        self._setting = setting
        if self._formula is not None:
            self._make(private)

    def close(self) -> None:
        """Moves what the open engine has spent to the account, and closes it."""
        if self._engine is None:
            return
        spent = self.spent()
        self._engine.close()
        self._engine = None
        if spent is not None:
            self.account.enter(spent)

    def _make(self, private: PerExampleModule | None = None) -> None:
        """Makes the private step, unless it is there, and the engine."""
        asked, formula = self.asked, self._formula
        assert formula is not None and self._sampler is not None
        if private is None:
            rows = torch.arange(min(self.rows.size, 4))
            sample = tuple(x.to(self._device) for x in next(self.rows.parts(rows, len(rows))))
            private = fxperex.transform(
                asked.module, sample, forward=formula.forward, clip=asked.rule(self.max_grad_norm),
                **{"physical_batch": self._physical(), "autocast": self._autocast, **asked.options})
        seed = asked.seed if asked.seed is None else asked.seed + self.account.steps
        self._private = private
        self._engine = PrivacyEngine(
            private, asked.optimizer, asked.dataset, expected_batch=asked.expected_batch,
            epochs=1, delta=UNUSED_DELTA, noise_multiplier=self.noise_multiplier,
            relation=asked.relation, sampling=self._sampler, account=asked.method, seed=seed,
            workers=asked.workers, collate_fn=asked.collate_fn)

    def _physical(self) -> int:
        """Rows of the compiled step: a part of the memory manager, or most draws in one."""
        expected = self.asked.expected_batch
        usual = math.ceil(expected + 2 * math.sqrt(expected)) if self.asked.poisson else \
            int(expected)
        return min(self._most or self.rows.size, usual, self.rows.size)

    def _trial(self) -> Iterator[Batch]:
        """Yields the first part of the first draw, before there is a step to debit."""
        assert self._sampler is not None
        for part in self.rows.parts(self._sampler.rows(0), self._most or self.rows.size):
            yield tuple(x.to(self._device) for x in part)

    def _begin(self, formula: Formula) -> None:
        """Makes the engine and opens its first step; the draw is the one that was handed out."""
        assert self._part is not None
        self._formula = formula
        try:
            self._make()
        except BaseException:
            self._formula = None
            raise
        self._parts = self._open()
        self._part.drawn = next(self._parts)

    def _open(self) -> Iterator[Batch]:
        assert self._engine is not None
        self._step = self._engine.logical_step()
        self._step.__enter__()
        return self._step.parts(self._most or self.rows.size)

    def _drawn(self) -> int:
        assert self._sampler is not None
        done = 0 if self._engine is None else self._engine.steps_done
        return len(self._sampler.rows(done))

    def _check_used(self, part: _Part) -> None:
        if part.formula is None:
            raise LedgerError("a batch was passed over without backward(): whether rows count must "
                              "not depend on what they are, and an empty batch still gets its "
                              "noise. Call backward() and optimizer.step() for every batch")
        if not part.stepped:
            raise LedgerError("a batch was followed by another without optimizer.step(). To sum "
                              "over several batches use BatchMemoryManager, and call "
                              "optimizer.step() for each: it updates after the last")

    def _abandon(self) -> None:
        """Closes a step that is not whole: its sum is cleared and its debit stands."""
        self._part, self._parts = None, iter(())
        step, self._step = self._step, None
        if step is not None:
            error = ConfigError("left early")
            step.__exit__(type(error), error, None)
