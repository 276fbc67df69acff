"""How much the ledger says was spent, in the sampler's units, and whether one more step may begin."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fxperex.errors import BudgetError
from fxperex.privacy.ledger import Ledger
from fxperex.privacy.sampling import Sampler


@dataclass
class Books:
    """A generation is one uninterrupted line of draws; a step drawn afresh after a crash is a step of a later one."""

    ledger: Ledger
    sampler: Sampler
    most: int | None = None  # units that may be spent

    def __post_init__(self) -> None:
        self._begun = {(r["generation"], r["step"]) for r in self.ledger.of("begin")}
        self._sums = {(r["generation"], r["step"]): r["hash"] for r in self.ledger.of("sum")}
        self._units = self._count()

    @property
    def units(self) -> int:
        return self._units

    @property
    def extra(self) -> int:
        """Steps begun more often than once."""
        return len(self._begun) - len({step for _, step in self._begun})

    @property
    def next_generation(self) -> int:
        return max((g for g, _ in self._begun), default=-1) + 1

    def fits(self, step: int, generation: int) -> bool:
        """Returns whether this step may begin: it has already, or the budget allows one more."""
        return (generation, step) in self._begun or self.most is None or self._with(step, generation) <= self.most

    def begin(self, step: int, generation: int) -> None:
        """Debits a step, on disk when this returns. Raises BudgetError or LedgerError; then nothing was spent."""
        if (generation, step) in self._begun:
            return
        if not self.fits(step, generation):
            raise BudgetError(f"step {step} would spend unit {self._with(step, generation)} of {self.most} that the budget "
                              "allows; no data was read")
        units = self._with(step, generation)
        self.ledger.append("begin", step=step, generation=generation)
        self._begun.add((generation, step))
        self._units = units

    def recorded(self, step: int, generation: int) -> str | None:
        """Returns the keyed hash of the sum that an earlier process released at this step, if any."""
        return self._sums.get((generation, step))

    def summed(self, step: int, generation: int, digest: str) -> None:
        """Records the sum that noise is about to be added to, on disk when this returns. Raises LedgerError."""
        self.ledger.append("sum", step=step, generation=generation, hash=digest)
        self._sums[generation, step] = digest

    def _with(self, step: int, generation: int) -> int:
        steps = sorted(s for g, s in self._begun if g == generation)
        before = self.sampler.units(len(steps), steps[0]) if steps else 0
        after = self.sampler.units(len(steps) + 1, min([*steps, step]))
        return self._units + after - before

    def _count(self) -> int:
        total = 0
        for _, found in itertools.groupby(sorted(self._begun), key=lambda pair: pair[0]):
            steps = [s for _, s in found]
            # From the first to the last: should a step between be missing, it is counted all the same.
            total += self.sampler.units(steps[-1] - steps[0] + 1, steps[0])
        return total
