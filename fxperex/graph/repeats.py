"""Runs of equal stretches in a sequence: what is printed once instead of twelve times."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

SHORTEST = 6  # lines of a text that folding must save
LONGEST = 600  # lines of one stretch


@dataclass(frozen=True)
class Stretch:
    """Items `start` to `start + length` of a sequence, which stand there `count` times in a row.

    lead: how many items before `start` repeat the end of the stretch, and are not shown.
    inside: the stretches of one time, from its start to its end.
    """

    start: int
    length: int
    count: int
    lead: int = 0
    inside: tuple[Stretch, ...] = ()


def folded(items: Sequence[Hashable], fewest: int = SHORTEST) -> tuple[Stretch, ...]:
    """Returns the stretches that `items` consist of, in order; a count of 1 means no repetition.

    The repetition that saves most is folded before the others, and each stretch is folded inside.
    fewest: how many items a repetition must save.
    """
    numbers: dict[Hashable, int] = {}
    return tuple(_folded([numbers.setdefault(item, len(numbers)) for item in items], 0, fewest))


def _folded(items: list[int], start: int, fewest: int) -> list[Stretch]:
    if not items:
        return []
    begin, length, count = _best(items, fewest)
    if count < 2:
        return [Stretch(start, len(items), 1)]
    end = begin + length * count
    lead = 0
    while lead < min(begin, length) and items[begin - 1 - lead] == items[begin + length - 1 - lead]:
        lead += 1
    lead = lead if lead >= SHORTEST else 0
    inside = _folded(items[begin:begin + length], start + begin, fewest)
    return [*_folded(items[:begin - lead], start, fewest),
            Stretch(start + begin, length, count, lead, tuple(inside)),
            *_folded(items[end:], start + end, fewest)]


def _best(items: list[int], fewest: int) -> tuple[int, int, int]:
    """Returns (begin, length, count) of the repetition that saves most, count 1 if none does."""
    best, saved = (0, len(items), 1), fewest - 1
    for length in range(1, min(len(items) // 2, LONGEST) + 1):
        run = 0  # how many items equal the one `length` later, without a break
        for i in range(len(items) - length - 1, -1, -1):
            run = run + 1 if items[i] == items[i + length] else 0
            saves = run // length * length
            if saves > saved:
                best, saved = (i, length, run // length + 1), saves
    return best
