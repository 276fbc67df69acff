"""The parts of a sampled batch: handed out, changed row by row if asked, and added once each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fxperex.capture.structure import leaves
from fxperex.errors import LedgerError, ShapeError
from fxperex.privacy.sampling.items import is_row, joined, length, one_row

Batch = Any  # a tuple or mapping of tensors, as the step takes it
# An augmentation: from one row's tensors, `[1, ...]` each, to one row's tensors.
EachRow = Callable[..., Batch]


@dataclass(eq=False)
class _Ticket:
    """A part that was handed out and not added yet. Holding it keeps its identity unique."""

    part: list[Any]
    versions: list[int]


class Parts:
    """The parts that were handed out and not added yet."""

    def __init__(self) -> None:
        self._tickets: list[_Ticket] = []

    def hand_out(self, part: Batch) -> None:
        tensors = leaves(part)
        self._tickets.append(_Ticket(tensors, _versions(tensors)))

    def check(self, batch: Batch) -> None:
        """Raises LedgerError unless `batch` is a part that waits, unchanged."""
        if self._ticket(batch).versions != _versions(leaves(batch)):
            raise LedgerError("a part was written to after parts() handed it out; rows are "
                              "changed one by one, by parts(each=...) or in the data set")

    def remove(self, batch: Batch) -> None:
        """Takes a part off the waiting ones: it was added. Raises LedgerError if it is none."""
        self._tickets.remove(self._ticket(batch))

    def clear(self) -> None:
        self._tickets.clear()

    def _ticket(self, batch: Batch) -> _Ticket:
        tensors = leaves(batch)
        for ticket in self._tickets:
            same = len(ticket.part) == len(tensors)
            if same and all(x is y for x, y in zip(ticket.part, tensors, strict=True)):
                return ticket
        raise LedgerError("these tensors are no part that is waiting; only what parts() yields may "
                          "be added, once. Rows are changed one by one, by parts(each=...) or in "
                          "the data set")


def row_by_row(batch: Batch, each: EachRow) -> Batch:
    """Returns `batch` with every row replaced by what `each` makes of it. Raises ShapeError."""
    rows = [each(*one_row(batch, i)) for i in range(length(batch))]
    if not all(is_row(row) for row in rows):
        raise ShapeError("each of parts(each=...) must return a tuple of tensors with one row "
                         "each, or a mapping of such")
    return joined(rows)


def _versions(batch: list[Any]) -> list[int]:
    """Returns how often each tensor was written to; 0 of inference tensors, which count nothing."""
    return [0 if x.is_inference() else x._version for x in batch]
