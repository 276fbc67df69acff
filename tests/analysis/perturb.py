"""One operation on random tensors: the rule's verdict, and whether examples meet when others are
replaced.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxperex.analysis.batch_axis import _apply
from fxperex.analysis.state import Context, Reduced
from fxperex.errors import BatchMixingError
from fxperex.layers.shapes import split
from fxperex.sites import BatchAxis

ROWS = 3
LARGE = 1e6


@dataclass(frozen=True)
class Slot:
    """A tensor argument: `sizes` at a batch of one, times the rows in `axis.dim`. `top`: exclusive
    bound of integers.
    """

    sizes: tuple[int, ...]
    axis: BatchAxis | None = None
    kind: str = "float"
    top: int = 2

    def make(self, rows: int) -> Tensor:
        shape = [
            s * rows if self.axis and d == self.axis.dim else s for d, s in enumerate(self.sizes)
        ]
        if self.kind == "float":
            return torch.rand(shape, dtype=torch.float64) + 0.1
        if self.kind == "complex":
            return torch.rand(shape, dtype=torch.complex128)
        values = torch.randint(0, self.top, shape)
        return values.bool() if self.kind == "bool" else values


@dataclass(frozen=True)
class Rows:
    """A number among the arguments: `times` the batch size."""

    times: int


@dataclass(frozen=True)
class Case:
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def leaves(self) -> list[Any]:
        return pytree.tree_leaves((self.args, self.kwargs),
                                  is_leaf=lambda a: isinstance(a, Slot | Rows))

    def filled(self, values: list[Any]) -> Any:
        spec = pytree.tree_structure((self.args, self.kwargs),
                                     is_leaf=lambda a: isinstance(a, Slot | Rows))
        return pytree.tree_unflatten(values, spec)

    def run(self, values: list[Any]) -> Any:
        args, kwargs = self.filled(values)
        torch.manual_seed(0)
        return self.target(*args, **kwargs)


def values_of(case: Case, rows: int, seed: int) -> list[Any]:
    torch.manual_seed(seed)
    return [
        leaf.make(rows) if isinstance(leaf, Slot) else leaf.times *
        rows if isinstance(leaf, Rows) else leaf for leaf in case.leaves()
    ]


def verdict(case: Case, seed: int) -> Any:
    """Returns the states of the outputs that the rule gives; raises BatchMixingError where it
    refuses.
    """
    nodes, states = [], []
    for rows in (ROWS, ROWS + 1):
        values, graph = values_of(case, rows, seed), fx.Graph()
        made, known = [], {}
        for leaf, value in zip(case.leaves(), values, strict=True):
            if isinstance(leaf, Slot):
                node = graph.placeholder(f"x{len(made)}")
                node.meta["val"], known[node] = value, leaf.axis
                made.append(node)
            else:
                made.append(value)
        args, kwargs = case.filled(made)
        node = graph.call_function(case.target, args, kwargs)
        node.meta["val"] = case.run(values)
        if isinstance(node.meta["val"], tuple | list):
            node.meta["val"] = list(node.meta["val"])
        nodes.append(node)
        states.append(known)
    one = _apply(Context(nodes[0], nodes[1], states[0], ROWS, ROWS + 1))
    two = _apply(Context(nodes[1], nodes[0], states[1], ROWS + 1, ROWS))
    if one != two:
        raise BatchMixingError("the examples end in another place with one example more")
    return one


def replaced(case: Case, values: list[Any], keep: int, how: str) -> list[Any]:
    """`values` with every example but `keep` replaced: by NaN, something huge, zero, or a copy of
    another example.
    """
    made = []
    for leaf, value in zip(case.leaves(), values, strict=True):
        if not isinstance(leaf, Slot) or leaf.axis is None:
            made.append(value)
            continue
        parts = split(value, leaf.axis, ROWS).clone()
        for row in range(ROWS):
            if row != keep:
                parts[row] = _instead(leaf, parts, row, how)
        made.append(joined(parts, leaf.axis, value.shape))
    return made


def _instead(leaf: Slot, parts: Tensor, row: int, how: str) -> Any:
    if how == "copy":
        return parts[(row + 1) % ROWS].clone()
    if leaf.kind in {"float", "complex"}:
        return {"nan": float("nan"), "huge": LARGE, "zero": 0.0}[how]
    return {"nan": leaf.top - 1, "huge": leaf.top // 2, "zero": 0}[how]


def joined(parts: Tensor, axis: BatchAxis, shape: torch.Size) -> Tensor:
    return parts.movedim(0, axis.dim + 1).reshape(shape)


def meets(case: Case, state: Any, seed: int) -> bool:
    """True if some example's outputs, where `state` puts them, change with the other examples."""
    if "empty" in str(case.target):
        return False  # it holds nothing that could be compared
    values = values_of(case, ROWS, seed)
    before = case.run(values)
    for keep in range(ROWS):
        for how in ("nan", "huge", "zero", "copy"):
            try:
                after = case.run(replaced(case, values, keep, how))
            except RuntimeError:  # no probability, such as NaN
                continue
            if _differs(before, after, state, keep):
                return True
    return False


def _differs(before: Any, after: Any, state: Any, keep: int) -> bool:
    outs = (before, after) if isinstance(before, tuple | list) else ((before,), (after,))
    states = state if isinstance(state, tuple) else (state,) * len(outs[0])
    for one, two, axis in zip(*outs, states, strict=True):
        if isinstance(axis, Reduced):
            continue
        if isinstance(axis, BatchAxis):
            one, two = split(one, axis, ROWS)[keep], split(two, axis, ROWS)[keep]
        if not torch.allclose(one, two, rtol=1e-12, atol=1e-12, equal_nan=True):
            return True
    return False


class Draw:
    """A seeded source of slots. Sizes are small primes, so that exchanged dimensions show."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def size(self) -> int:
        return self.rng.choice([2, 3, 5])

    def sizes(self, low: int = 1, high: int = 4) -> tuple[int, ...]:
        return tuple(self.size() for _ in range(self.rng.randint(low, high)))

    def x(self, *sizes: int, at: int | None = None, kind: str = "float", top: int = 2,
          plain: bool = False) -> Slot:
        """A batch-carrying tensor: the dimension `at` (any, if not given, the first half the time)
        holds the examples.
        """
        sizes = sizes or self.sizes()
        if at is None:
            at = 0 if self.rng.random() < 0.5 else self.rng.randrange(len(sizes))
        outer, inner = (1, 1) if plain else (self.rng.choice([1, 1, 2]), self.rng.choice([1, 1, 2]))
        filled = tuple(outer * inner if d == at else s for d, s in enumerate(sizes))
        return Slot(filled, BatchAxis(at, outer, inner), kind, top)

    def like(self, x: Slot, kind: str = "float", top: int = 2) -> Slot:
        return Slot(x.sizes, x.axis, kind, top)

    def shape(self, x: Slot) -> list[int | Rows]:
        return [Rows(s) if x.axis and d == x.axis.dim else s for d, s in enumerate(x.sizes)]

    def dim(self, x: Slot) -> int:
        return self.rng.randrange(-len(x.sizes), len(x.sizes))

    def dims(self, x: Slot) -> list[int]:
        return self.rng.sample(range(len(x.sizes)), self.rng.randint(1, len(x.sizes)))

    def flag(self) -> bool:
        return self.rng.random() < 0.5

    def reshaped(self, x: Slot) -> list[int | Rows]:
        """A shape that merges or splits dimensions of `x` at random."""
        sizes: list[tuple[int, bool]] = [
            (s, bool(x.axis and d == x.axis.dim)) for d, s in enumerate(x.sizes)
        ]
        for _ in range(self.rng.randint(1, 3)):
            at = self.rng.randrange(len(sizes))
            (size, batch), cut = sizes[at], self.rng.choice([1, 2, 3, 5])
            if self.flag() and at + 1 < len(sizes):
                more = sizes[at + 1]
                sizes[at:at + 2] = [(size * more[0], batch or more[1])]
            elif size % cut == 0:
                sizes[at:at + 1] = [(cut, False),
                                    (size // cut, batch)] if self.flag() else [(size // cut, batch),
                                                                               (cut, False)]
        return [Rows(s) if batch else s for s, batch in sizes]
