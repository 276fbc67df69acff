"""Which forward values to compute again instead of keeping them until they are read behind the forward.

Candidates come in pools. The forward is cut into segments of about equal bytes, at the narrowest places near by; what crosses
a cut is kept, and inside the segments go the cheap values (all but products, convolutions and attention) or, where those do
not suffice, all of them (checkpointing). From a pool the values with the most bytes per second of recomputing go first, no
more than the budget asks for. Every pool is judged by the peak of the whole step with it, so one that lengthens other lives
is not taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

from fxperex.devices import Profile
from fxperex.frame import Frame
from fxperex.liveness import Instruction, peak
from fxperex.planner.memory import program
from fxperex.planner.plan import Choice, Recompute
from fxperex.repeat import FORWARD

SEGMENTS = (1, 2, 4, 8, 16, 32, 64)


class Pools:
    """The pools of values for one frame under one assignment of strategies."""

    def __init__(self, frame: Frame, choices: Sequence[Choice]) -> None:
        self.frame, self.program = frame, program(frame, choices)
        self.steps = self.program.forward
        self.maker = {b: s for s in self.steps for b in s.makes}
        calls = zip(frame.listing.instructions, frame.costs, strict=True)
        self.costs = {s.name: cost for s, cost in calls}
        self.dear = {name for name, cost in self.costs.items() if cost.work}

    def of(self, cheap: bool) -> list[frozenset[str]]:
        """Every pool of `cheap` values, or of all, that is not empty, each once."""
        found = (self._pool(self._cut(count), cheap) for count in SEGMENTS)
        return list(dict.fromkeys(pool for pool in found if pool))

    def bytes(self, names: Collection[str]) -> float:
        """Peak bytes of the step with `names` repeated."""
        return peak(self.program.repeating(names)[0]).bytes

    def fewest(self, pool: frozenset[str], memory: float, times: Mapping[str, float]) -> frozenset[str]:
        """Returns the part of `pool`, which fits `memory`, that the most bytes per second reach first and that fits as well."""
        units = sorted(self._units(pool), key=lambda unit: -unit[0] / sum(times[name] for name in unit[1]))
        low, high = 0, len(units)
        while high - low > 1:
            middle = (low + high) // 2
            if self.bytes(_union(units[:middle])) <= memory:
                high = middle
            else:
                low = middle
        few = _union(units[:high])
        return few if self.bytes(few) <= memory else pool

    def _late(self, step: Instruction) -> int:
        """The last phase that reads what `step` makes."""
        return max((self.program.last.get(b, FORWARD) for b in step.makes), default=FORWARD)

    def _cut(self, count: int) -> frozenset[str]:
        """Buffers that cross the cuts between `count` segments."""
        ends = {b: i for i, s in enumerate(self.steps) for b in s.reads}
        kept = [sum(size for b, size in s.makes.items() if self.program.last.get(b, FORWARD) != FORWARD) for s in self.steps]
        reached = list(accumulate(kept))
        found: set[str] = set()
        for k in range(1, count):
            near = [i for i, r in enumerate(reached) if abs(r - k * reached[-1] / count) <= reached[-1] / count / 2]
            if near:
                at = min(near, key=self._widths.__getitem__)
                found |= {b for s in self.steps[:at + 1] for b in s.makes if ends.get(b, -1) > at}
        return frozenset(found)

    @cached_property
    def _widths(self) -> list[float]:
        """Bytes that the rest of the forward reads, behind every instruction of the forward."""
        ends = {b: i for i, s in enumerate(self.steps) for b in s.reads}
        change = [0.0] * (len(self.steps) + 1)
        for i, step in enumerate(self.steps):
            for b, size in step.makes.items():
                if b in ends:
                    change[i] += size
                    change[ends[b]] -= size
        return list(accumulate(change))[:-1]

    def _pool(self, cut: frozenset[str], cheap: bool) -> frozenset[str]:
        """Values that follow from such as live as long anyway, are kept at a cut, or are in the pool themselves."""
        pool: set[str] = set()
        names = self.frame.repeatable - (self.dear if cheap else set())
        kept = cut | self.program.listing.outputs
        for step in self.steps:
            if step.name in names and step.makes and kept.isdisjoint(step.makes):
                lives = (self.maker.get(b) is None or b in cut or self.maker[b].name in pool
                         or self.program.last.get(b, FORWARD) >= max(self._late(step), FORWARD + 1) for b in step.reads)
                if all(lives):
                    pool.add(step.name)
        return frozenset(pool) if any(self._late(s) != FORWARD for s in self.steps if s.name in pool) else frozenset()

    def _units(self, pool: frozenset[str]) -> Iterator[tuple[float, frozenset[str]]]:
        """(bytes that need not be kept, the values to repeat for that) for each value that is read behind the forward."""
        for step in self.steps:
            late = self._late(step)
            if step.name not in pool or late == FORWARD:
                continue
            unit, todo = {step.name}, [step]
            while todo:
                for b in todo.pop().reads:
                    source = self.maker.get(b)
                    if source and source.name in pool and source.name not in unit and self.program.last.get(b, FORWARD) < late:
                        unit.add(source.name)
                        todo.append(source)
            yield sum(step.makes.values()), frozenset(unit)


def _union(units: Sequence[tuple[float, frozenset[str]]]) -> frozenset[str]:
    return frozenset().union(*(names for _, names in units))


def cheapest(pools: Pools, memory: float, profile: Profile) -> Recompute | None:
    """Returns the Recompute of the fewest seconds found whose peak is within `memory`, or None where none is."""
    times = {name: profile.seconds(cost) for name, cost in pools.costs.items()}
    for cheap in (True, False):
        fitting = [pools.fewest(pool, memory, times) for pool in pools.of(cheap) if pools.bytes(pool) <= memory]
        if fitting:
            return min((told(pools, names, times) for names in fitting), key=lambda made: made.seconds)
    return None


def told(pools: Pools, names: Collection[str], times: Mapping[str, float]) -> Recompute:
    """Returns what is known of recomputing `names`."""
    again = pools.program.repeating(names)[1]
    late = {b for b, phase in pools.program.last.items() if phase != FORWARD}
    sizes = {s.name: sum(size for b, size in s.makes.items() if b in late) for s in pools.steps}
    used = tuple(s.name for s in pools.steps if s.name in set(again))
    return Recompute(used, sum(times[name] for name in again), sum(sizes[name] for name in used))


def least(pools: Pools) -> frozenset[str]:
    """Returns the pool of the least peak."""
    return min(pools.of(True) + pools.of(False), key=pools.bytes, default=frozenset())
