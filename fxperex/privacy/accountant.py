"""The account of a run: epsilon from noise, noise from epsilon. Arithmetic by dp_accounting, checks here.

"pld" (privacy loss distributions, pessimistic discretisation; the tight one) or "rdp" (Renyi; looser, faster).
Neighbours differ by one example added or removed, which is what Poisson sampling and clipped sums protect.
"""

from __future__ import annotations

from typing import Any

from fxperex.errors import ConfigError
from fxperex.privacy.checks import needed, positive, probability, whole
from fxperex.privacy.sampling import PoissonSampler

ACCOUNTANTS = ("pld", "rdp")

# Whole orders only: dp_accounting's series for fractional ones often does not converge, and it logs each.
ORDERS = (*range(2, 64), *range(64, 512, 16), 1024)

# Width of the loss grid: rounding is always up, so the coarse one that the search walks on is valid too.
FINE, COARSE = 1e-4, 1e-3

# Noise outside is refused: below, the loss grid outgrows memory; above, nothing is learnt.
LOWEST, HIGHEST = 2.0**-4, 2.0**24
TOLERANCE = 2.0**-13


def epsilon(sampler: PoissonSampler, noise_multiplier: float, steps: int, delta: float,
            accountant: str = "pld") -> float:
    """Returns epsilon at `delta` after `steps` batches of `sampler`; 0 for none. Raises ConfigError."""
    whole(steps, "steps")
    return _epsilon(sampler, positive(noise_multiplier, "noise_multiplier"), steps, probability(delta, "delta"),
                    accountant, FINE)


def noise_multiplier_for(epsilon: float, delta: float, sampler: PoissonSampler, accountant: str = "pld") -> float:
    """Returns about the least noise multiplier with which all of `sampler.steps` spend at most `epsilon`.

    Raises ConfigError, also where no noise between `LOWEST` and `HIGHEST` gives that epsilon.
    """
    target, delta = positive(epsilon, "epsilon"), probability(delta, "delta")
    whole(sampler.steps, "sampler.steps", 1)

    def fits(sigma: float, grid: float = COARSE) -> bool:
        return _epsilon(sampler, sigma, sampler.steps, delta, accountant, grid) <= target

    low, high = _bracket(fits, target)
    while high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    # The promise is in terms of `epsilon` as it will be reported, on the fine grid.
    while not fits(high, FINE):
        high *= 1 + TOLERANCE
    return high


def _bracket(fits: Any, target: float) -> tuple[float, float]:
    """Returns (too little noise, enough noise), a factor of two apart. Raises ConfigError."""
    sigma = 1.0
    if fits(sigma):
        while fits(sigma / 2):
            sigma /= 2
            if sigma <= LOWEST:
                raise ConfigError(f"epsilon {target} needs next to no noise (multiplier below {LOWEST}); ask for less")
        return sigma / 2, sigma
    while not fits(sigma * 2):
        sigma *= 2
        if sigma >= HIGHEST:
            raise ConfigError(f"epsilon {target} needs a noise multiplier above {HIGHEST}; ask for more, or fewer steps")
    return sigma, sigma * 2


def _epsilon(sampler: PoissonSampler, sigma: float, steps: int, delta: float, accountant: str, grid: float) -> float:
    if accountant not in ACCOUNTANTS:
        raise ConfigError(f"unknown accountant {accountant!r}; valid: {', '.join(ACCOUNTANTS)}")
    if sigma < LOWEST / 2:
        raise ConfigError(f"noise_multiplier {sigma} is too little to account for; the least is {LOWEST / 2}")
    event = sampler.event(sigma)
    if steps == 0:
        return 0.0
    if accountant == "pld":
        account = needed("dp_accounting.pld").PLDAccountant(value_discretization_interval=grid)
    else:
        account = needed("dp_accounting.rdp").RdpAccountant(ORDERS)
    return float(account.compose(event, steps).get_epsilon(delta))
