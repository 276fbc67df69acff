"""What the ledger says was spent: the same work at every step, however many came before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from fxperex.privacy import PoissonSampler, Sampler, ShuffledSampler
from fxperex.privacy.records.ledger import Ledger
from fxperex.privacy.records.spending import Books


def _ledger(steps: int) -> Ledger:
    """The ledger of a run that has taken `steps` steps."""
    ledger = Ledger(bytes(32))
    for i in range(steps):
        ledger.append("begin", step=i, generation=0)
    return ledger


def _lines(act: Callable[[], Any]) -> int:
    """Returns the number of Python lines that `act` runs, each round of a loop counted."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("make", [lambda: PoissonSampler(50, 5, 10**6, seed=0),
                                  lambda: ShuffledSampler(50, 5, 10**6, seed=0)])
def test_a_step_costs_the_same_work_after_1000_as_after_10(make: Callable[[], Sampler]) -> None:
    def work(before: int) -> int:
        books = Books(_ledger(before), make())
        return _lines(lambda: (books.fits(before, 0), books.begin(before, 0), books.next_generation,
                               books.extra, books.units))

    assert work(10) == work(1000)


def test_reopening_is_linear() -> None:
    sampler = PoissonSampler(50, 5, 10**6, seed=0)

    def work(steps: int) -> int:
        ledger = _ledger(steps)
        return _lines(lambda: Books(ledger, sampler))

    assert work(900) - work(600) == work(600) - work(300)


def test_epochs_and_generations_are_counted_as_ever() -> None:
    books = Books(Ledger(bytes(32)), ShuffledSampler(50, 5, 100, seed=0))
    for step in range(25):
        books.begin(step, 0)
    assert (books.units, books.extra, books.next_generation) == (3, 0, 1)
    books.begin(24, 1)
    books.begin(24, 1)
    books.begin(30, 1)
    assert (books.units, books.extra, books.next_generation) == (5, 1, 2)
    again = Books(books.ledger, books.sampler)
    assert (again.units, again.extra, again.next_generation) == (5, 1, 2)
