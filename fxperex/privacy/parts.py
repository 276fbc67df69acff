"""The parts of a sampled batch: handed out, changed row by row if asked, and added once each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxperex.errors import LedgerError, ShapeError

Batch = tuple[Tensor, ...]
# An augmentation: from one row's tensors, `[1, ...]` each, to one row's tensors.
EachRow = Callable[..., Batch]


@dataclass(eq=False)
class _Ticket:
    """A part that was handed out and not added yet. Holding it keeps its identity unique."""

    part: Batch
    versions: list[int]


class Parts:
    """The parts that were handed out and not added yet."""

    def __init__(self) -> None:
        self._tickets: list[_Ticket] = []

    def hand_out(self, part: Batch) -> None:
        self._tickets.append(_Ticket(part, _versions(part)))

    def check(self, batch: Batch) -> None:
        """Raises LedgerError unless `batch` is a part that waits, unchanged."""
        if self._ticket(batch).versions != _versions(batch):
            raise LedgerError("a part was written to after parts() handed it out; rows are "
                              "changed one by one, by parts(each=...) or in the data set")

    def remove(self, batch: Batch) -> None:
        """Takes a part off the waiting ones: it was added. Raises LedgerError if it is none."""
        self._tickets.remove(self._ticket(batch))

    def clear(self) -> None:
        self._tickets.clear()

    def _ticket(self, batch: Batch) -> _Ticket:
        for ticket in self._tickets:
            same = len(ticket.part) == len(batch)
            if same and all(x is y for x, y in zip(ticket.part, batch, strict=True)):
                return ticket
        raise LedgerError("these tensors are no part that is waiting; only what parts() yields may "
                          "be added, once. Rows are changed one by one, by parts(each=...) or in "
                          "the data set")


def row_by_row(batch: Batch, each: EachRow) -> Batch:
    """Returns `batch` with every row replaced by what `each` makes of it. Raises ShapeError."""
    rows = [each(*(x[i:i + 1] for x in batch)) for i in range(len(batch[0]))]
    if not all(_is_row(row) for row in rows):
        raise ShapeError("each of parts(each=...) must return a tuple of tensors with one row each")
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _is_row(row: object) -> bool:
    return isinstance(row, tuple) and all(
        isinstance(x, Tensor) and x.shape[:1] == (1,) for x in row)


def _versions(batch: Batch) -> list[int]:
    """Returns how often each tensor was written to; 0 of inference tensors, which count nothing."""
    return [0 if x.is_inference() else x._version for x in batch]
