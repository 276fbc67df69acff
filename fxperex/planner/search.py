"""The fastest assignment of strategies whose peak fits a budget, and the one with the lowest peak.

A price per held byte moves every site to its best strategy at that price (Lagrange). Bisection
finds the lowest price that fits. Then each site returns to its fastest strategy that still fits,
the site with the largest gain first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fxperex.cost_model.sizes import inputs_bytes, outputs_bytes
from fxperex.costs import Cost
from fxperex.memory.liveness import Peak
from fxperex.plan.choice import Choice
from fxperex.planner.fast_peak import Timeline
from fxperex.planner.memory import plan_peak, site_of
from fxperex.rewrite.frame import Frame

Choices = tuple[Choice, ...]
HALVINGS = 24
# Multiples of a budget that strategies aim at when recomputing is to save the difference.
LOOSENED = (1.25, 2.0)
Weight = Callable[[Choice, Cost], float]


def fit(frame: Frame, choices: Choices, memory: int) -> Choices | None:
    """Returns the fastest choices found with a peak of at most `memory` bytes, or None."""
    line = Timeline(frame, choices)
    if line.peak(choices) <= memory:
        return choices
    if line.floor() > memory:
        return None
    priced = [_priced_to_fit(line, choices, memory, weight) for weight in WEIGHTS]
    fitting = [candidate for candidate in priced if candidate is not None]
    if not fitting:
        slimmest = smallest(frame, choices)
        fitting = [slimmest] if line.peak(slimmest) <= memory else []
    improved = [_take_back(line, choices, candidate, memory) for candidate in fitting]
    return min(improved, key=_total_seconds) if improved else None


def smallest(frame: Frame, choices: Choices) -> Choices:
    """Returns the choices with the lowest peak found.

    From the best of a few extremes on, sites that are alive at the peak change until none helps.
    """
    line = Timeline(frame, choices)
    best = min((_at_price(choices, 1e12, weight) for weight in WEIGHTS), key=line.peak)
    lowest, before = line.peak(best), float("inf")
    while lowest < before:
        peak, before = plan_peak(frame, best), lowest
        moves = [(i, name) for i, c in enumerate(best) if not c.fixed and _matters(c, peak)
                 for name in c.costs if name != c.strategy]
        for i, name in sorted(moves, key=lambda move: line.peak(_with(best, *move))):
            candidate = _with(best, i, name)
            if (reached := line.peak(candidate)) < lowest:
                best, lowest = candidate, reached
    return best


def starts(frame: Frame, choices: Choices, memory: float | None = None) -> list[Choices]:
    """Returns assignments from which recomputing may reach a budget.

    These are `choices`, the extremes, and for `memory` those that fit a little more than `memory`.
    """
    line = Timeline(frame, choices)
    starting = [choices, *(_at_price(choices, 1e12, weight) for weight in WEIGHTS)]
    for multiple in () if memory is None else LOOSENED:
        if (candidate := _priced_to_fit(line, choices, multiple * memory, _held)) is not None:
            starting.append(candidate)
    return list({tuple(c.strategy for c in candidate): candidate
                 for candidate in starting}.values())


def _total_seconds(choices: Choices) -> float:
    return sum(c.seconds for c in choices)


def _held(choice: Choice, cost: Cost) -> float:
    """Returns the bytes that this site keeps alive from its norm to its sum."""
    site = choice.site
    return cost.held + (inputs_bytes(site) + outputs_bytes(site) if cost.rereads else 0.0)


WEIGHTS: tuple[Weight, ...] = (_held, lambda c, cost: cost.held,
                               lambda c, cost: _held(c, cost) + cost.transient)


def _at_price(choices: Choices, price: float, weight: Weight) -> Choices:
    def best(choice: Choice) -> Choice:
        if choice.fixed:
            return choice
        priced = {name: choice.times[name] + price * weight(choice, cost)
                  for name, cost in choice.costs.items()}
        return replace(choice, strategy=min(priced, key=priced.__getitem__))

    return tuple(map(best, choices))


def _priced_to_fit(line: Timeline, choices: Choices, memory: float,
                   weight: Weight) -> Choices | None:
    low, high = -18.0, 0.0  # log10 of seconds per byte
    best = _at_price(choices, 10**high, weight)
    if line.peak(best) > memory:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        candidate = _at_price(choices, 10**middle, weight)
        if line.peak(candidate) <= memory:
            best, high = candidate, middle
        else:
            low = middle
    return best


def _take_back(line: Timeline, free: Choices, tight: Choices, memory: int) -> Choices:
    """Returns `tight` with sites back at faster strategies that fit, the largest gain first."""
    gains = sorted(((t.times[name] - t.seconds, i, name)
                    for i, (t, f) in enumerate(zip(tight, free, strict=True)) if not t.fixed
                    for name in f.costs), key=lambda move: move[0])
    for _, i, name in gains:
        if tight[i].times[name] < tight[i].seconds:
            candidate = _with(tight, i, name)
            if line.peak(candidate) <= memory:
                tight = candidate
    return tight


def _with(choices: Choices, index: int, strategy: str) -> Choices:
    return (*choices[:index], choices[index].using(strategy), *choices[index + 1:])


def _matters(choice: Choice, peak: Peak) -> bool:
    """True if the site is alive at the peak, so that another strategy there may lower it."""
    at_peak = {site_of(peak.instruction), *(site_of(name) for name, _ in peak.buffers)}
    return choice.cost.rereads or choice.site.name in at_peak


def notes(free: Sequence[Choice], tight: Sequence[Choice]) -> Choices:
    """Returns `tight` with a note at every site where the budget changed the strategy."""
    def noted(fastest: Choice, fitted: Choice) -> Choice:
        if fitted.strategy == fastest.strategy:
            return fitted
        gain = 1e3 * (fitted.seconds - fastest.seconds)
        note = f"memory budget: {fastest.strategy} would be {gain:.3f} ms faster"
        return fitted.using(fitted.strategy, note)

    return tuple(map(noted, free, tight))
