"""Which nodes of a graph may run a second time and give the same bits, and the Listing where some
of them do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.memory.liveness import Instruction, Listing

FORWARD, BACKWARD, SUMS = range(3)


def writes(node: fx.Node) -> bool:
    """True for an operation that writes in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def storages(node: fx.Node) -> set[int]:
    """Returns the memory of a node with fake values in `meta["val"]`."""
    return {
        t.untyped_storage()._cdata
        for t in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(t, torch.Tensor)
    }


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
    """Returns the operations among `nodes` that give the same bits again: nothing random, nothing
    that touches written memory.
    """
    dirty = written(nodes)
    return frozenset(n for n in nodes if n.op == "call_function" and not random(n) and not writes(n)
                     and not touches(n, dirty))


@dataclass(frozen=True)
class Program:
    """A Listing of a step, and the phase of each instruction: FORWARD, BACKWARD (with the norms) or
    SUMS.

    A repeated instruction runs again in each later phase that reads its buffers, before the first
    reader.
    """

    listing: Listing
    phases: Sequence[int]
    # Buffer -> the final phase that reads it.
    final_phase: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        latest: dict[str, int] = {}
        for step, phase in zip(self.listing.instructions, self.phases, strict=True):
            for name in step.reads:
                latest[name] = max(phase, latest.get(name, FORWARD))
        object.__setattr__(self, "final_phase", latest)

    @cached_property
    def forward(self) -> tuple[Instruction, ...]:
        """The instructions of the forward."""
        pairs = zip(self.listing.instructions, self.phases, strict=True)
        return tuple(step for step, phase in pairs if phase == FORWARD)

    def repeating(self, names: Collection[str]) -> tuple[Listing, list[str]]:
        """Returns the Listing in which the forward instructions `names` are repeated, and the name
        of each instruction that runs again.
        """
        maker = {b: (i, s) for i, s in enumerate(self.listing.instructions) if s.name in names
                 for b in s.makes}
        instructions: list[Instruction] = []
        repeated: list[str] = []
        done: set[tuple[int, int]] = set()
        for step, phase in zip(self.listing.instructions, self.phases, strict=True):
            if phase != FORWARD and any(b in maker for b in step.reads):
                for _, needed in _needed(step, phase, maker, done):
                    repeated.append(needed.name)
                    instructions.append(_repetition(needed, phase, maker))
                step = replace(step, reads=_reads(step, phase, maker))
            instructions.append(step)
        return replace(self.listing, instructions=tuple(instructions)), repeated


Makers = Mapping[str, tuple[int, Instruction]]


def _needed(step: Instruction, phase: int, maker: Makers,
            done: set[tuple[int, int]]) -> list[tuple[int, Instruction]]:
    """Returns what `phase` must repeat for `step`, in order, and adds it to `done`."""
    needed: dict[int, Instruction] = {}
    queue = [step]
    while queue:
        for index, source in (maker[b] for b in queue.pop().reads if b in maker):
            if (index, phase) not in done:
                done.add((index, phase))
                needed[index] = source
                queue.append(source)
    return sorted(needed.items())


def _repetition(step: Instruction, phase: int, maker: Makers) -> Instruction:
    makes = {f"{b}@{phase}": size for b, size in step.makes.items()}
    return replace(step, name=f"{step.name}@{phase}", makes=makes,
                   reads=_reads(step, phase, maker))


def _reads(step: Instruction, phase: int, maker: Makers) -> tuple[str, ...]:
    return tuple(f"{b}@{phase}" if b in maker else b for b in step.reads)
