"""Rows that repeat from block to block, as one row: `transformer.h.{0..11}.mlp.c_fc.weight x12`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fxperex.graph.text import numbered, starred
from fxperex.plan.byte_sizes import size
from fxperex.plan.choice import Choice
from fxperex.plan.table import row, shape

FEWEST = 3  # rows that are worth one for all


@dataclass(frozen=True)
class Group:
    """Choices of equal shape, kind and strategy whose names differ in a number, or one choice."""

    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        """The site's name; of several, with the range of their numbers and how many they are."""
        return repeated([c.site.name for c in self.choices])

    @property
    def seconds(self) -> float:
        return sum(c.seconds for c in self.choices)

    def cells(self) -> tuple[str, ...]:
        """Returns the cells of a plan's table, and the module; milliseconds and bytes are sums."""
        first = self.choices[0]
        modules = [c.site.where.partition(", ")[0] for c in self.choices]
        cells = row(first)
        if len(self.choices) == 1:
            return (*cells, modules[0])
        star = "*" if first.strategy in first.measured else ""
        held = size(sum(c.cost.held for c in self.choices))
        return (self.name, f"{cells[1]} ...", *cells[2:5], f"{1e3 * self.seconds:.3f}{star}", held,
                cells[7], numbered(modules))


def groups(choices: Iterable[Choice], top: int | None = None) -> tuple[list[Group], list[Group]]:
    """Returns (the groups to show, the others): with `top` the dearest of them, else all."""
    by_key: dict[tuple[str, ...], list[Choice]] = {}
    for c in choices:
        key = (starred(c.site.name), c.site.kind, shape(c), c.strategy, str(c.fixed), c.note)
        by_key.setdefault(key, []).append(c)
    rows = [Group(tuple(part)) for members in by_key.values() for part in _parts(members)]
    if top is None or top >= len(rows):
        return rows, []
    dearest = sorted(rows, key=lambda group: -group.seconds)
    return dearest[:top], dearest[top:]


def _parts(members: list[Choice]) -> list[list[Choice]]:
    return [members] if len(members) >= FEWEST else [[c] for c in members]


def repeated(names: Sequence[str]) -> str:
    """Returns one name for all `names`, with their number."""
    return names[0] if len(names) == 1 else f"{numbered(names)} x{len(names)}"


def same_but_numbers(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns `rows` with those that differ in numbers alone as one row, if they are FEWEST."""
    by_key: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for cells in rows:
        by_key.setdefault(tuple(_no_numbers(cell) for cell in cells), []).append(cells)
    merged = []
    for members in by_key.values():
        if len(members) < FEWEST or starred(members[0][0]) == members[0][0]:
            merged += members
        else:
            merged.append((repeated([cells[0] for cells in members]), *members[0][1:-1],
                           f"{members[0][-1]} ..." if members[0][-1] != "-" else "-"))
    return merged


def _no_numbers(cell: str) -> str:
    return " ".join(starred(word) for word in cell.split(" "))
