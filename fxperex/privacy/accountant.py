"""What a run costs: (epsilon, delta), by dp-accounting.

The event always comes from the sampler that draws the batches (`sampler.event`), never from a rate given by hand.
"pld" (default): privacy loss distributions, rounded pessimistically; "rdp": Renyi orders, looser and independent.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fxperex.errors import ConfigError
from fxperex.privacy.checks import needed, one_of, positive, probability, whole

if TYPE_CHECKING:
    from dp_accounting import DpEvent

METHODS, ROUGH = ("pld", "rdp"), "rdp of few orders"
# The field's three, and dp-accounting's names for them.
RELATIONS = {"add-or-remove": "ADD_OR_REMOVE_ONE", "zero-out": "REPLACE_SPECIAL", "replace": "REPLACE_ONE"}
# Below, a single step costs epsilon 50 and more; above, the noise drowns every gradient.
SIGMA_MIN, SIGMA_MAX = 2.0**-3, 2.0**20
TOLERANCE = 1e-4
# Renyi orders give a bound some 10 % above PLD's: where the search starts, and how far it looks at first.
EIGHTHS, NARROW = 8, 1.25
# Widths of the loss grid. Both round upwards; the search walks on the coarse one, ten times faster.
FINE, COARSE = 1e-4, 1e-3
# Fractional orders are slow and their series often fails to converge; whole ones bound from above all the same.
ORDERS, FEW_ORDERS = (*range(2, 64), *range(64, 512, 16), 1024), tuple(range(2, 65))


class Sampler(Protocol):
    """What the accountant needs of a sampler."""

    steps: int

    def event(self, noise_multiplier: float) -> DpEvent: ...
    def units(self, steps: int, first: int = 0) -> int: ...
    def relations(self) -> tuple[str, ...]: ...


def epsilon(sampler: Sampler, noise_multiplier: float, delta: float, *, steps: int | None = None, method: str = "pld",
            relation: str = "add-or-remove") -> float:
    """Returns an upper bound of epsilon at `delta` after `steps` steps (default: all of the sampler's).

    Infinite where no finite epsilon holds. Raises ConfigError.
    """
    count = sampler.units(sampler.steps if steps is None else whole(steps, "steps"))
    return epsilon_of(sampler, noise_multiplier, delta, count, method=method, relation=relation)


def epsilon_of(sampler: Sampler, noise_multiplier: float, delta: float, units: int, *, method: str = "pld",
               relation: str = "add-or-remove") -> float:
    """Returns an upper bound of epsilon at `delta` after `units` of the sampler's units. Raises ConfigError."""
    sigma, delta = positive(noise_multiplier, "noise_multiplier"), probability(delta, "delta")
    make = _account(method, _allowed(sampler, relation))
    return _epsilon(make, sampler.event(sigma), whole(units, "units"), delta)


def noise_multiplier_for(target_epsilon: float, delta: float, sampler: Sampler, *, method: str = "pld",
                         relation: str = "add-or-remove") -> float:
    """Returns the smallest noise multiplier (to 1e-4) whose epsilon over all the sampler's steps is at most the target.

    Never below 2^-3. Raises ConfigError, also when no multiplier up to 2^20 fits.
    """
    target, delta = positive(target_epsilon, "epsilon"), probability(delta, "delta")
    relation = _allowed(sampler, relation)
    fine, coarse = _account(method, relation), _account(method, relation, COARSE)
    count = sampler.units(sampler.steps)

    def fits(sigma: float, make: Callable[[], Any] = coarse) -> bool:
        return _epsilon(make, sampler.event(sigma), count, delta) <= target

    low, high = _bracket(fits, _rough(target, delta, sampler, relation), target,
                         lambda: _epsilon(coarse, sampler.event(SIGMA_MAX), count, delta))
    while high > low * (1 + TOLERANCE):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    # The promise is about epsilon as it will be reported, on the fine grid.
    while not fits(high, fine):
        high *= 1 + TOLERANCE
    return high


def affordable(sampler: Sampler, noise_multiplier: float, budget: float, delta: float, *, most: int, method: str = "pld",
               relation: str = "add-or-remove") -> int:
    """Returns the largest number of units, up to `most`, whose epsilon at `delta` is at most `budget`. Raises ConfigError."""
    positive(budget, "budget")

    def over(units: int) -> bool:
        return epsilon_of(sampler, noise_multiplier, delta, units, method=method, relation=relation) > budget

    return most if not over(most) else bisect.bisect_left(range(most), True, key=over) - 1


def _bracket(fits: Callable[[float], bool], guess: float, target: float, least: Callable[[], float]) -> tuple[float, float]:
    """Noise multipliers (too small, large enough) around `guess`; equal at the least one allowed."""
    high = guess
    while not fits(high):
        if high >= SIGMA_MAX:
            raise ConfigError(f"no noise multiplier up to {SIGMA_MAX:.0f} reaches epsilon {target:g} at this delta; the least is "
                              f"{least():.3g}. Raise epsilon or delta, take fewer steps or a smaller expected batch")
        high = min(2 * high, SIGMA_MAX)
    while high > SIGMA_MIN:
        low = max(high / NARROW, SIGMA_MIN)
        if not fits(low):
            return low, high
        high = low
    return SIGMA_MIN, SIGMA_MIN


def _rough(target: float, delta: float, sampler: Sampler, relation: str) -> float:
    """A guess from whole Renyi orders: cheap at any noise, where PLD takes half a minute at small noise."""
    make = _maker(ROUGH, "add-or-remove", FINE)
    if not make().supports(sampler.event(1.0)):
        return 1.0
    # Replacing is removing and adding: twice as far.
    scale = 2.0 if relation == "replace" else 1.0
    count = sampler.units(sampler.steps)

    def fits(eighth: int) -> bool:
        event = sampler.event(2.0 ** (eighth / EIGHTHS) / scale)
        return _epsilon(make, event, count, delta) <= target

    eighths = range(round(EIGHTHS * math.log2(SIGMA_MIN)), round(EIGHTHS * math.log2(SIGMA_MAX)))
    first = eighths[0] + bisect.bisect_left(eighths, True, key=fits)
    return float(2.0 ** (first / EIGHTHS))


def _epsilon(make: Callable[[], Any], event: DpEvent, count: int, delta: float) -> float:
    if count == 0:
        return 0.0
    return max(0.0, float(_composed(make, event, count).get_epsilon(delta)))


@functools.lru_cache(maxsize=4)  # of some megabytes each: asking again, also at another delta, is free
def _composed(make: Callable[[], Any], event: DpEvent, count: int) -> Any:
    account = make()
    if not account.supports(event):
        raise ConfigError(f"this account does not know {type(event).__name__} under this relation; use method \"pld\"")
    return account.compose(event, count)


def _allowed(sampler: Sampler, relation: str) -> str:
    one_of(relation, "relation", RELATIONS)
    if relation not in sampler.relations():
        raise ConfigError(f"{type(sampler).__name__} has no guarantee under the relation {relation!r}; "
                          f"it has one under {' or '.join(sampler.relations())}")
    return relation


def _account(method: str, relation: str, grid: float = FINE) -> Callable[[], Any]:
    one_of(method, "accounting method", METHODS)
    if method == "rdp" and relation == "replace":
        raise ConfigError('the account "rdp" does not cover the relation "replace"; use "pld"')
    return _maker(method, relation, grid)


@functools.cache  # one maker each, so that what it composed is found again
def _maker(method: str, relation: str, grid: float) -> Callable[[], Any]:
    accounting = needed("dp_accounting")
    neighbours = accounting.NeighboringRelation[RELATIONS[relation]]
    return {"pld": lambda: accounting.pld.PLDAccountant(neighbours, value_discretization_interval=grid),
            "rdp": lambda: accounting.rdp.RdpAccountant(ORDERS, neighbours),
            ROUGH: lambda: accounting.rdp.RdpAccountant(FEW_ORDERS)}[method]
