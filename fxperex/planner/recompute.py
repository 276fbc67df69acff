"""Which forward values to compute again, instead of keeping them until the backward reads them.

Candidates come in pools. The forward is cut into segments of about equal bytes, at the narrowest
place near each cut. Values that cross a cut are kept. Inside the segments the cheap values are
recomputed (all but products, convolutions and attention). If those do not suffice, all values are
(checkpointing). From a pool, values that save the most bytes per second of recomputing go first,
until the budget is met. A pool counts by the peak of the step with it, so a pool that keeps other
values alive longer loses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

from fxperex.devices import Profile
from fxperex.memory.liveness import Instruction, peak
from fxperex.memory.repetition import FORWARD
from fxperex.plan.choice import Choice, Recompute
from fxperex.planner.memory import program
from fxperex.rewrite.frame import Frame

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
        """Returns the different pools, of `cheap` values or of all, that are not empty."""
        pools = (self._pool(self._cut(count), cheap) for count in SEGMENTS)
        return list(dict.fromkeys(pool for pool in pools if pool))

    def bytes(self, names: Collection[str]) -> float:
        """Returns the peak bytes of the step with `names` repeated."""
        return peak(self.program.repeating(names)[0]).bytes

    def fewest(self, pool: frozenset[str], memory: float,
               times: Mapping[str, float]) -> frozenset[str]:
        """Returns a small part of `pool` that fits `memory`, if all of `pool` does.

        It has the values that save most bytes per second of `times`.
        """
        units = sorted(self._units(pool),
                       key=lambda unit: -unit[0] / sum(times[name] for name in unit[1]))
        low, high = 0, len(units)
        while high - low > 1:
            middle = (low + high) // 2
            if self.bytes(_union(units[:middle])) <= memory:
                high = middle
            else:
                low = middle
        part = _union(units[:high])
        return part if self.bytes(part) <= memory else pool

    def _late(self, step: Instruction) -> int:
        """Returns the final phase that reads what `step` makes."""
        return max((self.program.final_phase.get(b, FORWARD) for b in step.makes), default=FORWARD)

    def _cut(self, count: int) -> frozenset[str]:
        """Returns the buffers that cross the cuts between `count` segments."""
        ends = {b: i for i, s in enumerate(self.steps) for b in s.reads}
        late = {b for b, phase in self.program.final_phase.items() if phase != FORWARD}
        saved = [sum(size for b, size in s.makes.items() if b in late) for s in self.steps]
        reached = list(accumulate(saved))
        crossing: set[str] = set()
        for k in range(1, count):
            target, tolerance = k * reached[-1] / count, reached[-1] / count / 2
            near = [i for i, size in enumerate(reached) if abs(size - target) <= tolerance]
            if near:
                cut = min(near, key=self._widths.__getitem__)
                crossing |= {b for s in self.steps[:cut + 1] for b in s.makes
                             if ends.get(b, -1) > cut}
        return frozenset(crossing)

    @cached_property
    def _widths(self) -> list[float]:
        """Returns, after each instruction of the forward, the bytes that later ones read."""
        ends = {b: i for i, s in enumerate(self.steps) for b in s.reads}
        change = [0.0] * (len(self.steps) + 1)
        for i, step in enumerate(self.steps):
            for b, size in step.makes.items():
                if b in ends:
                    change[i] += size
                    change[ends[b]] -= size
        return list(accumulate(change))[:-1]

    def _pool(self, cut: frozenset[str], cheap: bool) -> frozenset[str]:
        """Returns the values whose inputs exist when they are recomputed.

        Such an input lives that long anyway, is kept at a cut, or is in the pool itself.
        """
        pool: set[str] = set()
        names = self.frame.repeatable - (self.dear if cheap else set())
        excluded = cut | self.program.listing.outputs
        for step in self.steps:
            if step.name in names and step.makes and excluded.isdisjoint(step.makes):
                late = max(self._late(step), FORWARD + 1)
                if all(self._exists(b, late) or b in cut or self.maker[b].name in pool
                       for b in step.reads):
                    pool.add(step.name)
        saves = any(self._late(s) != FORWARD for s in self.steps if s.name in pool)
        return frozenset(pool) if saves else frozenset()

    def _exists(self, buffer: str, phase: int) -> bool:
        """True for a buffer that no instruction of the forward makes, or that `phase` reads."""
        return buffer not in self.maker or self.program.final_phase.get(buffer, FORWARD) >= phase

    def _units(self, pool: frozenset[str]) -> Iterator[tuple[float, frozenset[str]]]:
        """Yields (bytes saved, the values to repeat) for each value read after the forward."""
        for step in self.steps:
            late = self._late(step)
            if step.name not in pool or late == FORWARD:
                continue
            unit, todo = {step.name}, [step]
            while todo:
                for b in todo.pop().reads:
                    source = self.maker.get(b)
                    if source is None or source.name not in pool or source.name in unit:
                        continue
                    if self.program.final_phase.get(b, FORWARD) < late:
                        unit.add(source.name)
                        todo.append(source)
            yield sum(step.makes.values()), frozenset(unit)


def _union(units: Sequence[tuple[float, frozenset[str]]]) -> frozenset[str]:
    return frozenset().union(*(names for _, names in units))


def cheapest(pools: Pools, memory: float, profile: Profile) -> Recompute | None:
    """Returns the fastest Recompute found with a peak of at most `memory` bytes, or None."""
    times = {name: profile.seconds(cost) for name, cost in pools.costs.items()}
    for cheap in (True, False):
        fitting = [pools.fewest(pool, memory, times) for pool in pools.of(cheap)
                   if pools.bytes(pool) <= memory]
        if fitting:
            candidates = (described(pools, names, times) for names in fitting)
            return min(candidates, key=lambda recompute: recompute.seconds)
    return None


def described(pools: Pools, names: Collection[str], times: Mapping[str, float]) -> Recompute:
    """Returns the Recompute of `names`."""
    repeated = pools.program.repeating(names)[1]
    late = {b for b, phase in pools.program.final_phase.items() if phase != FORWARD}
    sizes = {s.name: sum(size for b, size in s.makes.items() if b in late) for s in pools.steps}
    used = tuple(s.name for s in pools.steps if s.name in set(repeated))
    return Recompute(used, sum(times[name] for name in repeated), sum(sizes[name] for name in used))


def smallest_pool(pools: Pools) -> frozenset[str]:
    """Returns the pool whose step has the lowest peak."""
    return min(pools.of(True) + pools.of(False), key=pools.bytes, default=frozenset())
