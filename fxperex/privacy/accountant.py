"""What a run costs: (epsilon, delta) under adding or removing one example, by dp-accounting.

The event always comes from the sampler that draws the batches (`sampler.event`), never from a rate given by hand.
"pld" (default): privacy loss distributions, rounded pessimistically; "rdp": Renyi orders, looser and independent.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fxperex.errors import ConfigError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

METHODS = ("pld", "rdp")
# Below, a single step costs epsilon 50 and more; above, the noise drowns every gradient.
SIGMA_MIN, SIGMA_MAX = 2.0**-3, 2.0**20
TOLERANCE = 1e-4
# Renyi orders give a bound some 10 % above PLD's: where the search starts, and how far it looks at first.
EIGHTHS, NARROW = 8, 1.25
# Widths of the loss grid. Both round upwards; the search walks on the coarse one, ten times faster.
FINE, COARSE = 1e-4, 1e-3


class Sampler(Protocol):
    """What the accountant needs of a sampler."""

    @property
    def steps(self) -> int: ...

    def event(self, noise_multiplier: float) -> DpEvent:
        """The event of one step."""
        ...


def sampled_gaussian(rate: float, noise_multiplier: float) -> DpEvent:
    """Returns the event of one Gaussian release to which each example contributes with probability `rate`."""
    events = _library()
    return events.PoissonSampledDpEvent(rate, events.GaussianDpEvent(positive(noise_multiplier, "noise_multiplier")))


def epsilon(sampler: Sampler, noise_multiplier: float, delta: float, *, steps: int | None = None,
            method: str = "pld") -> float:
    """Returns an upper bound of epsilon at `delta` after `steps` steps (default: all of the sampler's).

    Infinite where no finite epsilon holds. Raises ConfigError.
    """
    sigma, delta = positive(noise_multiplier, "noise_multiplier"), _delta(delta)
    count = sampler.steps if steps is None else _steps(steps)
    return _epsilon(_method(method), sampler.event(sigma), count, delta)


def noise_multiplier_for(target_epsilon: float, delta: float, sampler: Sampler, *, method: str = "pld") -> float:
    """Returns the smallest noise multiplier (to 1e-4) whose epsilon over all the sampler's steps is at most the target.

    Never below 2^-3. Raises ConfigError, also when no multiplier up to 2^20 fits.
    """
    target, delta = positive(target_epsilon, "epsilon"), _delta(delta)
    fine, coarse = _method(method), _method(method, COARSE)

    def fits(sigma: float, make: Callable[[], Any] = coarse) -> bool:
        return _epsilon(make, sampler.event(sigma), sampler.steps, delta) <= target

    low, high = _bracket(fits, _rough(target, delta, sampler))
    while high > low * (1 + TOLERANCE):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    # The promise is about epsilon as it will be reported, on the fine grid.
    while not fits(high, fine):
        high *= 1 + TOLERANCE
    return high


def positive(value: object, name: str) -> float:
    """Returns `value` if it is a finite number above 0, else raises ConfigError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a finite number above 0; got {value!r}")
    return float(value)


def _bracket(fits: Callable[[float], bool], guess: float) -> tuple[float, float]:
    """Noise multipliers (too small, large enough) around `guess`; equal at the least one allowed."""
    high = guess
    while not fits(high):
        if high >= SIGMA_MAX:
            raise ConfigError(f"no noise multiplier up to {SIGMA_MAX:.0f} reaches this epsilon at this delta; "
                              "raise epsilon or delta, take fewer steps or a smaller expected batch")
        high = min(2 * high, SIGMA_MAX)
    while high > SIGMA_MIN:
        low = max(high / NARROW, SIGMA_MIN)
        if not fits(low):
            return low, high
        high = low
    return SIGMA_MIN, SIGMA_MIN


def _rough(target: float, delta: float, sampler: Sampler) -> float:
    """A guess from whole Renyi orders: cheap at any noise, where PLD takes half a minute at small noise."""
    from dp_accounting import rdp

    def fits(eighth: int) -> bool:
        event = sampler.event(2.0 ** (eighth / EIGHTHS))
        return _epsilon(lambda: rdp.RdpAccountant(range(2, 65)), event, sampler.steps, delta) <= target

    eighths = range(round(EIGHTHS * math.log2(SIGMA_MIN)), round(EIGHTHS * math.log2(SIGMA_MAX)))
    first = eighths[0] + bisect.bisect_left(eighths, True, key=fits)
    return float(2.0 ** (first / EIGHTHS))


def _epsilon(make: Callable[[], Any], event: DpEvent, steps: int, delta: float) -> float:
    if steps == 0:
        return 0.0
    account = make().compose(event, steps)
    return max(0.0, float(account.get_epsilon(delta)))


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ConfigError('accounting needs the package dp-accounting, which is not installed: '
                          'pip install "fxperex[accounting]"') from error
    return dp_accounting


def _method(method: str, grid: float = FINE) -> Callable[[], Any]:
    if method not in METHODS:
        raise ConfigError(f"unknown accounting method {method!r}; valid: {', '.join(METHODS)}")
    _library()
    from dp_accounting import pld, rdp

    # Whole orders: the series for fractional ones often does not converge, and is logged each time.
    return {"pld": lambda: pld.PLDAccountant(value_discretization_interval=grid),
            "rdp": lambda: rdp.RdpAccountant([*range(2, 64), *range(64, 512, 16), 1024])}[method]


def _delta(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"delta must be a number above 0 and below 1; got {value!r}")
    return float(value)


def _steps(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"steps must be a whole number of at least 0; got {value!r}")
    return value
