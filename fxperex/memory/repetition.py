"""A step whose forward is repeated in part: its Listing, with every repetition in its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from fxperex.memory.liveness import Instruction, Listing

FORWARD, BACKWARD, SUMS = range(3)


@dataclass(frozen=True)
class Program:
    """A Listing of a whole step; `phases` of its instructions: FORWARD, BACKWARD and the norms,
    SUMS.

    In each later phase, a repeated instruction runs again before the phase's first reader of its
    buffers.
    """

    listing: Listing
    phases: Sequence[int]
    last: Mapping[str, int] = field(init=False, repr=False)  # buffer -> last phase that reads it

    def __post_init__(self) -> None:
        latest: dict[str, int] = {}
        for step, phase in zip(self.listing.instructions, self.phases, strict=True):
            for name in step.reads:
                latest[name] = max(phase, latest.get(name, FORWARD))
        object.__setattr__(self, "last", latest)

    @cached_property
    def forward(self) -> tuple[Instruction, ...]:
        """The instructions of the forward."""
        return tuple(
            s for s, p in zip(self.listing.instructions, self.phases, strict=True) if p == FORWARD)

    def repeating(self, names: Collection[str]) -> tuple[Listing, list[str]]:
        """Returns the Listing in which the forward instructions `names` are repeated, and the name
        of each repetition.
        """
        maker = {
            b: (i, s)
            for i, s in enumerate(self.listing.instructions) if s.name in names for b in s.makes
        }
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
    """Returns the instructions that `phase` must repeat for `step`, in order, and adds them to
    `done`.
    """
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
    return replace(step, name=f"{step.name}@{phase}",
                   makes={f"{b}@{phase}": size
                          for b, size in step.makes.items()}, reads=_reads(step, phase, maker))


def _reads(step: Instruction, phase: int, maker: Makers) -> tuple[str, ...]:
    return tuple(f"{b}@{phase}" if b in maker else b for b in step.reads)
