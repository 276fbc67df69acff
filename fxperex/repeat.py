"""Which nodes of a graph may run a second time and give the same bits, and the Listing where some of them do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.liveness import Instruction, Listing

FORWARD, BACKWARD, SUMS = range(3)


def writes(node: fx.Node) -> bool:
    """True for an operation that writes in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def storages(node: fx.Node) -> set[int]:
    """Returns the memory behind a node with fake values in `meta["val"]`."""
    return {t.untyped_storage()._cdata for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, torch.Tensor)}


def random(node: fx.Node) -> bool:
    """True for an operation that draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def written(nodes: Collection[fx.Node]) -> set[int]:
    """Returns the memory that some operation of `nodes` writes in place."""
    return {s for n in nodes if writes(n) for a in n.all_input_nodes for s in storages(a)}


def touches(node: fx.Node, memory: set[int]) -> bool:
    """True for an operation that reads or makes some of `memory`."""
    return bool(memory) and any(memory & storages(n) for n in (node, *node.all_input_nodes))


def repeatable(nodes: Collection[fx.Node]) -> frozenset[fx.Node]:
    """Returns the operations among `nodes` that give the same bits again: nothing random, nothing that touches written memory."""
    dirty = written(nodes)
    return frozenset(n for n in nodes if n.op == "call_function" and not random(n) and not writes(n)
                     and not touches(n, dirty))


@dataclass(frozen=True)
class Program:
    """A Listing of a whole step; `phases` of its instructions: FORWARD, BACKWARD and the norms, SUMS.

    In every phase but the first, the buffers of a repeated instruction are made anew in front of their first reader there.
    """

    listing: Listing
    phases: Sequence[int]
    last: Mapping[str, int] = field(init=False, repr=False)  # buffer -> last phase that reads it

    def __post_init__(self) -> None:
        found: dict[str, int] = {}
        for step, phase in zip(self.listing.instructions, self.phases, strict=True):
            for name in step.reads:
                found[name] = max(phase, found.get(name, FORWARD))
        object.__setattr__(self, "last", found)

    @cached_property
    def forward(self) -> tuple[Instruction, ...]:
        """The instructions of the forward."""
        return tuple(s for s, p in zip(self.listing.instructions, self.phases, strict=True) if p == FORWARD)

    def repeating(self, names: Collection[str]) -> tuple[Listing, list[str]]:
        """Returns the Listing in which the forward instructions `names` are repeated, and the name of each repetition."""
        maker = {b: (i, s) for i, s in enumerate(self.listing.instructions) if s.name in names for b in s.makes}
        made: list[Instruction] = []
        again: list[str] = []
        done: set[tuple[int, int]] = set()
        for step, phase in zip(self.listing.instructions, self.phases, strict=True):
            if phase != FORWARD and any(b in maker for b in step.reads):
                for _, needed in _needed(step, phase, maker, done):
                    again.append(needed.name)
                    made.append(_anew(needed, phase, maker))
                step = replace(step, reads=_reads(step, phase, maker))
            made.append(step)
        return replace(self.listing, instructions=tuple(made)), again


Makers = Mapping[str, tuple[int, Instruction]]


def _needed(step: Instruction, phase: int, maker: Makers, done: set[tuple[int, int]]) -> list[tuple[int, Instruction]]:
    """Repeated instructions that `step` needs and that `phase` has not repeated yet, in their order; notes them in `done`."""
    found: dict[int, Instruction] = {}
    todo = [step]
    while todo:
        for index, source in (maker[b] for b in todo.pop().reads if b in maker):
            if (index, phase) not in done:
                done.add((index, phase))
                found[index] = source
                todo.append(source)
    return sorted(found.items())


def _anew(step: Instruction, phase: int, maker: Makers) -> Instruction:
    return replace(step, name=f"{step.name}@{phase}", makes={f"{b}@{phase}": size for b, size in step.makes.items()},
                   reads=_reads(step, phase, maker))


def _reads(step: Instruction, phase: int, maker: Makers) -> tuple[str, ...]:
    return tuple(f"{b}@{phase}" if b in maker else b for b in step.reads)
