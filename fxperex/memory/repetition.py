"""A step whose forward is repeated in part: its Listing, with every repetition in its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from fxperex.memory.liveness import Instruction, Listing

FORWARD, BACKWARD, SUMS = range(3)


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
