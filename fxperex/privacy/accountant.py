"""What a run costs: (epsilon, delta), by dp-accounting.

The event always comes from the sampler that draws the batches (`sampler.event`), never from a rate
given by hand. "pld": privacy loss distributions, rounded pessimistically; "rdp": Renyi orders,
mostly looser, and independent. "smaller" (default): both are bounds, so the smaller of the two is
one.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fxperex.errors import ConfigError
from fxperex.privacy.checks import needed, one_of, positive, probability, whole

if TYPE_CHECKING:
    from dp_accounting import DpEvent

METHODS = ("smaller", "pld", "rdp")
# The field's three, and dp-accounting's names for them.
RELATIONS = {
    "add-or-remove": "ADD_OR_REMOVE_ONE", "zero-out": "REPLACE_SPECIAL", "replace": "REPLACE_ONE"
}
# Below, a single step costs epsilon 50 and more; above, the noise drowns every gradient.
SIGMA_MIN, SIGMA_MAX = 2.0**-3, 2.0**20
TOLERANCE, ROUGHLY = 1e-4, 3e-3
# No epsilon is reported as 0 or infinite to the search, which takes logarithms.
TINY, HUGE = 1e-12, 1e12
# Renyi orders give a bound some 10 % above PLD's: where the search starts, and how far it looks
# at first.
EIGHTHS, NARROW = 8, 1.25
# Widths of the loss grid, which rounds upwards. A step's losses are narrower than the usual one if
# a run spends little or takes many steps: the grid is then a fixed part of the epsilon by Renyi
# orders, in powers of two, and no finer than is worth its time. Calibration walks on a coarser one.
FINE, FINEST, PART, COARSER = 1e-4, 6, 2.0**-14, 8
TYPICAL_DELTA = 1e-5
# Fractional orders are slow and their series often fails to converge; whole ones bound from above
# all the same.
ORDERS = (*range(2, 64), *range(64, 512, 16), 1024)


class Sampler(Protocol):
    """What the accountant needs of a sampler."""

    steps: int

    def event(self, noise_multiplier: float) -> DpEvent: ...
    def units(self, steps: int, first: int = 0) -> int: ...
    def relations(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Bound:
    """An upper bound of epsilon, and the account that it is by."""

    epsilon: float
    method: str


def epsilon(sampler: Sampler, noise_multiplier: float, delta: float, *, steps: int | None = None,
            method: str = "smaller", relation: str = "add-or-remove") -> float:
    """Returns an upper bound of epsilon at `delta` after `steps` steps (default: all planned).

    Infinite if no finite epsilon holds. Raises ConfigError.
    """
    count = sampler.units(sampler.steps if steps is None else whole(steps, "steps"))
    return epsilon_of(sampler, noise_multiplier, delta, count, method=method, relation=relation)


def epsilon_of(sampler: Sampler, noise_multiplier: float, delta: float, units: int, *,
               method: str = "smaller", relation: str = "add-or-remove") -> float:
    """Returns an upper bound of epsilon after `units` of the sampler's units.

    Raises ConfigError.
    """
    return bound(sampler, noise_multiplier, delta, units, method, relation).epsilon


def bound(sampler: Sampler, noise_multiplier: float, delta: float, units: int,
          method: str = "smaller", relation: str = "add-or-remove", coarser: int = 1) -> Bound:
    """Returns epsilon as `epsilon_of`, with the account it is by; on a grid `coarser` times as
    wide.

    Raises ConfigError.
    """
    sigma, delta = positive(noise_multiplier, "noise_multiplier"), probability(delta, "delta")
    one_of(method, "accounting method", METHODS)
    _allowed(sampler, relation)
    if method == "rdp" and relation == "replace":
        raise ConfigError('the account "rdp" does not cover the relation "replace"; use "pld"')
    whole(units, "units")
    event = sampler.event(sigma)
    bounds = []
    if method != "rdp":
        grid = coarser * _grid(sampler, sigma, units, relation)
        bounds.append(Bound(_epsilon(_maker("pld", relation, grid), event, units, delta), "pld"))
    if method == "rdp" or (method == "smaller" and _has_orders(event, relation)):
        bounds.append(Bound(_epsilon(_maker("rdp", relation), event, units, delta), "rdp"))
    return min(bounds, key=lambda b: b.epsilon)


def noise_multiplier_for(target_epsilon: float, delta: float, sampler: Sampler, *,
                         method: str = "smaller", relation: str = "add-or-remove") -> float:
    """Returns a noise multiplier whose epsilon over all the sampler's steps is at most the target.

    A multiplier smaller by 3e-4 of itself would pass the target. Never below 2^-3. Raises
    ConfigError, also if no multiplier up to 2^20 fits.
    """
    target, delta = positive(target_epsilon, "epsilon"), probability(delta, "delta")
    one_of(method, "accounting method", METHODS)
    count = sampler.units(sampler.steps)

    def excess(sigma: float, coarser: int = 1) -> float:
        spent = bound(sampler, sigma, delta, count, method, relation, coarser).epsilon
        return math.log(min(max(spent, TINY), HUGE) / target)

    def coarse(sigma: float) -> float:
        return excess(sigma, COARSER)

    _allowed(sampler, relation)
    low, high = _bracket(coarse, _rough(target, delta, sampler, relation), target)
    if low < high:
        high = _root(coarse, low, high, ROUGHLY)
    # The promise is about epsilon as it is reported. It falls at least as fast as sigma grows, or
    # nearly, so what is left over says how much noise that grid gave away.
    while (left_over := excess(high)) > 0:
        high *= 1 + TOLERANCE
    low = max(SIGMA_MIN, high / (1 + TOLERANCE) * math.exp(max(left_over, -1.0)))
    while low > SIGMA_MIN and excess(low) <= 0:
        low, high = max(SIGMA_MIN, low / NARROW), low
    return _root(excess, low, high) if low < high and excess(low) > 0 else low


def affordable(sampler: Sampler, noise_multiplier: float, budget: float, delta: float, *, most: int,
               method: str = "smaller", relation: str = "add-or-remove") -> int:
    """Returns the largest number of units, up to `most`, whose epsilon is at most `budget`.

    Raises ConfigError.
    """
    positive(budget, "budget")

    def over(units: int) -> bool:
        spent = epsilon_of(sampler, noise_multiplier, delta, units, method=method,
                           relation=relation)
        return spent > budget

    return most if not over(most) else bisect.bisect_left(range(most), True, key=over) - 1


def _root(excess: Callable[[float], float], low: float, high: float,
          tolerance: float = TOLERANCE) -> float:
    """Returns what has no excess, between `low`, which has some, and `high`; low to `tolerance`."""
    solve = needed("scipy.optimize").brentq
    # The logarithm of epsilon is nearly a line in that of sigma: a few secants.
    root = math.exp(solve(lambda x: excess(math.exp(x)), math.log(low), math.log(high),
                           xtol=tolerance / 2, rtol=8.9e-16))
    while root < high and excess(root) > 0:
        root *= 1 + tolerance / 2
    return min(root, high)


def _bracket(excess: Callable[[float], float], guess: float, target: float) -> tuple[float, float]:
    """Noise multipliers (too small, large enough) near `guess`; equal at the least one allowed."""
    high = guess
    while excess(high) > 0:
        if high >= SIGMA_MAX:
            smallest = target * math.exp(excess(SIGMA_MAX))
            raise ConfigError(f"no noise multiplier up to {SIGMA_MAX:.0f} reaches epsilon "
                              f"{target:g} at this delta; the least is {smallest:.3g}. Raise "
                              "epsilon or delta, take fewer steps or a smaller expected batch")
        high = min(2 * high, SIGMA_MAX)
    narrow = NARROW
    while high > SIGMA_MIN:
        low = max(high / narrow, SIGMA_MIN)
        if excess(low) > 0:
            return low, high
        high, narrow = low, narrow**2
    return SIGMA_MIN, SIGMA_MIN


def _rough(target: float, delta: float, sampler: Sampler, relation: str) -> float:
    """A guess from Renyi orders: cheap at any noise, where PLD takes seconds at small noise."""
    count = sampler.units(sampler.steps)
    if math.isinf(_by_orders(sampler, SIGMA_MAX, count, delta, relation)):
        return 1.0

    def fits(eighth: int) -> bool:
        return _by_orders(sampler, 2.0 ** (eighth / EIGHTHS), count, delta, relation) <= target

    lowest = round(EIGHTHS * math.log2(SIGMA_MIN))
    eighths = range(lowest, round(EIGHTHS * math.log2(SIGMA_MAX)))
    start = lowest + bisect.bisect_left(eighths, True, key=fits)
    return float(2.0 ** (start / EIGHTHS))


def _grid(sampler: Sampler, sigma: float, units: int, relation: str) -> float:
    """The width of the loss grid for this run, the same at every delta."""
    rough = _by_orders(sampler, sigma, units, TYPICAL_DELTA, relation)
    if not 0 < rough < FINE / PART:
        return FINE
    return FINE * 2.0 ** max(-FINEST, math.floor(math.log2(PART * rough / FINE)))


def _by_orders(sampler: Sampler, sigma: float, units: int, delta: float, relation: str) -> float:
    """Epsilon by Renyi orders; infinite for an event that they do not know."""
    make = _maker("rdp", "add-or-remove" if relation == "replace" else relation)
    # Replacing is removing and adding: twice as far.
    event = sampler.event(sigma / 2 if relation == "replace" else sigma)
    return _epsilon(make, event, units, delta) if make().supports(event) else math.inf


def _has_orders(event: DpEvent, relation: str) -> bool:
    return relation != "replace" and _maker("rdp", relation)().supports(event)


def _epsilon(make: Callable[[], Any], event: DpEvent, count: int, delta: float) -> float:
    if count == 0:
        return 0.0
    return max(0.0, float(_composed(make, event, count).get_epsilon(delta)))


@functools.lru_cache(
    maxsize=12)  # of some megabytes each: asking again, also at another delta, is free
def _composed(make: Callable[[], Any], event: DpEvent, count: int) -> Any:
    account = make()
    if not account.supports(event):
        raise ConfigError(f"this account does not know {type(event).__name__} under this "
                          "relation; use method \"pld\"")
    return account.compose(event, count)


def _allowed(sampler: Sampler, relation: str) -> str:
    one_of(relation, "relation", RELATIONS)
    if relation not in sampler.relations():
        raise ConfigError(f"{type(sampler).__name__} has no guarantee under the relation "
                          f"{relation!r}; it has one under {' or '.join(sampler.relations())}")
    return relation


@functools.cache  # one maker each, so that what it composed is used again
def _maker(method: str, relation: str, grid: float = FINE) -> Callable[[], Any]:
    accounting = needed("dp_accounting")
    neighbours = accounting.NeighboringRelation[RELATIONS[relation]]
    return {"pld": lambda: accounting.pld.PLDAccountant(
                neighbours, value_discretization_interval=grid),
            "rdp": lambda: accounting.rdp.RdpAccountant(ORDERS, neighbours)}[method]
