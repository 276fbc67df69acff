"""What the ledger says was spent, in the sampler's units, and whether one more step may begin.

Every question that a step asks takes the same time after a hundred thousand steps as after ten.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxperex.errors import BudgetError
from fxperex.privacy.records.ledger import Ledger
from fxperex.privacy.sampling.poisson import Sampler


@dataclass
class Books:
    """The account of one run. limit: units that may be spent; None: any.

    A generation is a line of draws without interruption. A step that is drawn again after a crash
    belongs to a later generation.
    """

    ledger: Ledger
    sampler: Sampler
    limit: int | None = None

    def __post_init__(self) -> None:
        self._begun: set[tuple[int, int]] = set()
        self._steps: set[int] = set()
        self._spans: dict[int, tuple[int, int]] = {}  # lowest and highest step by generation
        for record in self.ledger.of("begin"):
            self._note(record["step"], record["generation"])
        self._sums = {(r["generation"], r["step"]): r["hash"] for r in self.ledger.of("sum")}
        self._shortened = {(r["generation"], r["step"]) for r in self.ledger.of("leave out")}
        self._units = sum(self._cost(span) for span in self._spans.values())

    @property
    def units(self) -> int:
        return self._units

    @property
    def extra(self) -> int:
        """How often a step was begun again."""
        return len(self._begun) - len(self._steps)

    @property
    def shortened(self) -> int:
        """Steps that were taken without the rows that fail."""
        return len(self._shortened)

    @property
    def next_generation(self) -> int:
        return max(self._spans, default=-1) + 1

    def fits(self, step: int, generation: int) -> bool:
        """Returns whether this step may begin: it has already, or the budget allows one more."""
        begun = (generation, step) in self._begun
        return begun or self.limit is None or self._with(step, generation) <= self.limit

    def begin(self, step: int, generation: int) -> None:
        """Debits a step, on disk when this returns.

        Raises BudgetError or LedgerError; then nothing was spent.
        """
        if (generation, step) in self._begun:
            return
        if not self.fits(step, generation):
            raise BudgetError(f"step {step} would spend unit {self._with(step, generation)} of "
                              f"{self.limit} that the budget allows; no data was read")
        units = self._with(step, generation)
        self.ledger.append("begin", step=step, generation=generation)
        self._note(step, generation)
        self._units = units

    def recorded(self, step: int, generation: int) -> str | None:
        """Returns the keyed hash of the sum that an earlier process released at this step."""
        return self._sums.get((generation, step))

    def summed(self, step: int, generation: int, digest: str) -> None:
        """Records the sum that noise is about to be added to, on disk when this returns.

        Raises LedgerError.
        """
        self.ledger.append("sum", step=step, generation=generation, hash=digest)
        self._sums[generation, step] = digest

    def leave_out(self, step: int, generation: int) -> None:
        """Records that this step is taken without the rows that fail. Raises LedgerError."""
        if not self.leaves_out(step, generation):
            self.ledger.append("leave out", step=step, generation=generation)
            self._shortened.add((generation, step))

    def leaves_out(self, step: int, generation: int) -> bool:
        """Returns whether this step is taken without the rows that fail, in a replay as before."""
        return (generation, step) in self._shortened

    def _note(self, step: int, generation: int) -> None:
        self._begun.add((generation, step))
        self._steps.add(step)
        self._spans[generation] = self._span(step, generation)

    def _span(self, step: int, generation: int) -> tuple[int, int]:
        lowest, highest = self._spans.get(generation, (step, step))
        return min(lowest, step), max(highest, step)

    def _with(self, step: int, generation: int) -> int:
        span = self._spans.get(generation)
        before = 0 if span is None else self._cost(span)
        after = self._cost(self._span(step, generation))
        return self._units + after - before

    def _cost(self, span: tuple[int, int]) -> int:
        # From the lowest to the highest step: one that is missing between them is counted too.
        return self.sampler.units(span[1] - span[0] + 1, span[0])
