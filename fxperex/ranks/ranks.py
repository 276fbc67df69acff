"""The processes that share a step, as an object. One process alone is the trivial one of them.

Who asks it need not know how many there are: `ALONE` does each thing without a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from fxperex.ranks import deal
from fxperex.ranks.totals import Totals

Json = TypeVar("Json")


class Ranks:
    """Process `rank` of the `size` that split the rows of a step."""

    rank, size = 0, 1

    @contextmanager
    def every(self, what: str, error: BaseException | None = None,
              token: int = 0) -> Iterator[None]:
        """A block that all ranks leave by themselves, or all with an error.

        error: what this rank has raised already; it is reported and not raised again. token: a
        number that must be the same on all ranks. Raises on a rank that has not failed the error
        of one that has, if it is one of ours, else RankError.
        """
        yield

    def decided(self, act: Callable[[], Json]) -> Json:
        """Returns what `act` returned on rank 0, where alone it runs: a value for JSON.

        If it raises there, all ranks raise.
        """
        return act()

    def alike(self, what: str, facts: Mapping[str, object]) -> None:
        """Raises ConfigError on every rank unless `facts`, for JSON, are the same on all."""

    def highest(self, number: int) -> int:
        """Returns the highest of all ranks' numbers, below 2^62."""
        return number

    def total(self, number: float) -> float:
        """Returns the float64 sum of all ranks' numbers."""
        return number

    def tensors(self, named: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Returns the tensors of rank 0, which alone hands them over, on the CPU."""
        return dict(named or {})

    def share(self, drawn: Tensor, size: int) -> Tensor:
        """Returns the rows of a step that this rank runs, in pieces of `size`."""
        return deal.share(drawn, size, self.rank, self.size)

    def place(self, count: int, size: int) -> int:
        """Returns the place in the whole step of the row after this rank's `count` rows."""
        return deal.place(count, size, self.rank, self.size)

    def totals(self, sums: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> Totals:
        """Returns the Totals of all ranks' `sums`, to be gathered in `dtypes`."""
        return Totals(sums, dtypes)


ALONE = Ranks()
