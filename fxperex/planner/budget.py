"""The fastest assignment of strategies whose peak fits a budget, and the one of the least peak.

A price per byte held moves every site to its best strategy at that price (Lagrange); the lowest price that fits is
found by bisection, and then every site takes back the fastest strategy that still fits, largest gain first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fxperex.frame import Frame
from fxperex.liveness import Peak
from fxperex.planner.memory import plan_peak, site_of
from fxperex.planner.plan import Choice
from fxperex.planner.timeline import Timeline
from fxperex.registry import Cost
from fxperex.work import inputs_bytes, outputs_bytes

Choices = tuple[Choice, ...]
HALVINGS = 24
NEARLY = (1.25, 2.0)  # times a budget: what strategies leave to recomputing
Weight = Callable[[Choice, Cost], float]


def fit(frame: Frame, choices: Choices, memory: int) -> Choices | None:
    """Returns the fastest choices found whose peak is within `memory` bytes, or None where none fits."""
    line = Timeline(frame, choices)
    if line.peak(choices) <= memory:
        return choices
    if line.floor() > memory:
        return None
    found = [made for weight in WEIGHTS if (made := _priced_to_fit(line, choices, memory, weight)) is not None]
    if not found:
        least = smallest(frame, choices)
        found = [least] if line.peak(least) <= memory else []
    better = [_take_back(line, choices, made, memory) for made in found]
    return min(better, key=lambda made: sum(c.seconds for c in made)) if better else None


def smallest(frame: Frame, choices: Choices) -> Choices:
    """Returns choices of the least peak: the best of a few extremes, improved at sites that live at the peak until none helps."""
    line = Timeline(frame, choices)
    best = min((_at_price(choices, 1e12, weight) for weight in WEIGHTS), key=line.peak)
    least, before = line.peak(best), float("inf")
    while least < before:
        now, before = plan_peak(frame, best), least
        moves = [(i, name) for i, c in enumerate(best) if not c.fixed and _matters(c, now)
                 for name in c.costs if name != c.strategy]
        for i, name in sorted(moves, key=lambda move: line.peak(_with(best, *move))):
            made = _with(best, i, name)
            if (found := line.peak(made)) < least:
                best, least = made, found
    return best


def starts(frame: Frame, choices: Choices, memory: float | None = None) -> list[Choices]:
    """Returns assignments from which recomputing may reach a budget: the given one, the extremes, some between for `memory`."""
    line = Timeline(frame, choices)
    found = [choices, *(_at_price(choices, 1e12, weight) for weight in WEIGHTS)]
    for share in () if memory is None else NEARLY:
        if (made := _priced_to_fit(line, choices, share * memory, _held)) is not None:
            found.append(made)
    return list({tuple(c.strategy for c in made): made for made in found}.values())


def _held(choice: Choice, cost: Cost) -> float:
    """Bytes that stay alive because of this site from its norm to its sum."""
    again = inputs_bytes(choice.site) + outputs_bytes(choice.site) if cost.rereads else 0.0
    return cost.held + again


WEIGHTS: tuple[Weight, ...] = (_held, lambda c, cost: cost.held, lambda c, cost: _held(c, cost) + cost.transient)


def _at_price(choices: Choices, price: float, weight: Weight) -> Choices:
    def best(c: Choice) -> Choice:
        return c if c.fixed else replace(c, strategy=min(c.costs, key=lambda k: c.times[k] + price * weight(c, c.costs[k])))

    return tuple(best(c) for c in choices)


def _priced_to_fit(line: Timeline, choices: Choices, memory: float, weight: Weight) -> Choices | None:
    low, high = -18.0, 0.0  # log10 of seconds per byte
    best = _at_price(choices, 10**high, weight)
    if line.peak(best) > memory:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        made = _at_price(choices, 10**middle, weight)
        if line.peak(made) <= memory:
            best, high = made, middle
        else:
            low = middle
    return best


def _take_back(line: Timeline, free: Choices, tight: Choices, memory: int) -> Choices:
    """Gives every site the fastest strategy that still fits, largest gain first."""
    gains = sorted(((t.times[name] - t.seconds, i, name) for i, (t, f) in enumerate(zip(tight, free, strict=True))
                    if not t.fixed for name in f.costs), key=lambda move: move[0])
    for _, i, name in gains:
        if tight[i].times[name] < tight[i].seconds:
            made = _with(tight, i, name)
            if line.peak(made) <= memory:
                tight = made
    return tight


def _with(choices: Choices, index: int, strategy: str) -> Choices:
    return (*choices[:index], choices[index].using(strategy), *choices[index + 1:])


def _matters(choice: Choice, now: Peak) -> bool:
    return choice.cost.rereads or site_of(now.at) == choice.site.name or any(site_of(n) == choice.site.name for n, _ in now.live)


def notes(free: Sequence[Choice], tight: Sequence[Choice]) -> Choices:
    """Returns `tight` with a note at every site that the budget moved away from its fastest strategy."""
    return tuple(t if t.strategy == f.strategy else
                 t.using(t.strategy, f"memory budget: {f.strategy} would be {1e3 * (t.seconds - f.seconds):.3f} ms faster")
                 for f, t in zip(free, tight, strict=True))
