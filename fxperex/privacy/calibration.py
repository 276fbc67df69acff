"""The accountant asked backwards: the noise for an epsilon, and the steps for a budget."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

from fxperex.errors import ConfigError
from fxperex.privacy.accountant import (
    METHODS,
    Sampler,
    bound,
    by_orders,
    check_relation,
    epsilon_of,
)
from fxperex.privacy.checks import needed, one_of, positive, probability

# Below, a single step costs epsilon 50 and more; above, the noise drowns every gradient.
SIGMA_MIN, SIGMA_MAX = 2.0**-3, 2.0**20
TOLERANCE, ROUGHLY = 1e-4, 3e-3
# No epsilon is reported as 0 or infinite to the search, which takes logarithms.
TINY, HUGE = 1e-12, 1e12
# Renyi orders give a bound some 10 % above PLD's. The search starts there, in eighths of a power of
# two, and at first looks no further than a factor NARROW.
EIGHTHS, NARROW = 8, 1.25
COARSER = 8  # the search walks on a loss grid that is so many times as wide


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

    check_relation(sampler, relation)
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
    """Returns the smallest value without excess between `low`, which has some, and `high`.

    It is too large by at most `tolerance`, relative.
    """
    solve = needed("scipy.optimize").brentq
    # The logarithm of epsilon is nearly a line in that of sigma: a few secants.
    root = math.exp(solve(lambda x: excess(math.exp(x)), math.log(low), math.log(high),
                           xtol=tolerance / 2, rtol=8.9e-16))
    while root < high and excess(root) > 0:
        root *= 1 + tolerance / 2
    return min(root, high)


def _bracket(excess: Callable[[float], float], guess: float, target: float) -> tuple[float, float]:
    """Returns noise multipliers (too small, large enough) near `guess`; both SIGMA_MIN if that is
    large enough.
    """
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
    """Returns a guess from Renyi orders: cheap at any noise; PLD takes seconds at small noise."""
    count = sampler.units(sampler.steps)
    if math.isinf(by_orders(sampler, SIGMA_MAX, count, delta, relation)):
        return 1.0

    def fits(eighth: int) -> bool:
        return by_orders(sampler, 2.0 ** (eighth / EIGHTHS), count, delta, relation) <= target

    lowest = round(EIGHTHS * math.log2(SIGMA_MIN))
    eighths = range(lowest, round(EIGHTHS * math.log2(SIGMA_MAX)))
    start = lowest + bisect.bisect_left(eighths, True, key=fits)
    return float(2.0 ** (start / EIGHTHS))
