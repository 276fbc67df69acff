"""From an attack's hits to epsilon, from below, by exact binomial (Clopper-Pearson) bounds.
Confidence is one-sided.

`pair` and `gaussian` take scores of runs with and without the canary and a threshold chosen
beforehand, so that no correction for having searched is due; `guesses` takes the coin tosses of one
run.
"""

from __future__ import annotations

import math

import numpy as np

from fxperex.privacy.checks import needed, probability, whole

CONFIDENCE = 0.95
LARGEST = 100.0  # epsilon beyond which nobody asks


def upper(errors: int, trials: int, miss: float) -> float:
    """Returns the upper bound of a rate of which `errors` in `trials` were seen; too low with
    probability `miss`.
    """
    if errors >= trials:
        return 1.0
    return float(needed("scipy.stats").beta.isf(miss, errors + 1, trials - errors))


def error_rates(present: np.ndarray, absent: np.ndarray, threshold: float,
                confidence: float) -> tuple[float, float]:
    """Returns upper bounds of (misses, false alarms) of "score >= threshold means present", both at
    once at `confidence`.
    """
    miss = (1 - probability(confidence, "confidence")) / 2
    return (upper(int((present < threshold).sum()), len(present), miss),
            upper(int((absent >= threshold).sum()), len(absent), miss))


def pair(present: np.ndarray, absent: np.ndarray, threshold: float, delta: float,
         confidence: float = CONFIDENCE) -> float:
    """Returns a lower bound of epsilon at `delta`: `log((hits - delta) / false alarms)` (Nasr et
    al., arXiv 2101.04535).

    Holds for any mechanism. Raises ConfigError.
    """
    misses, alarms = error_rates(present, absent, threshold, confidence)
    return max(0.0, math.log(max(1 - misses - delta, alarms) / alarms))


def gaussian(present: np.ndarray, absent: np.ndarray, threshold: float, delta: float,
             confidence: float = CONFIDENCE) -> float:
    """Returns a lower bound of epsilon at `delta`, given that the mechanism is a Gaussian one
    (arXiv 2302.07956).

    `mu >= -z(misses) - z(false alarms)`; epsilon from mu by Dong et al., Corollary 2.13 (arXiv
    1905.02383). A claim of mu is refuted by more. Raises ConfigError.
    """
    normal = needed("scipy.stats").norm
    mu = sum(
        float(normal.isf(rate)) for rate in error_rates(present, absent, threshold, confidence))
    return epsilon_of_mu(mu, delta)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Returns the epsilon of mu-Gaussian privacy at `delta`, up to 100. Raises ConfigError."""
    normal, log_delta = needed("scipy.stats").norm, math.log(probability(delta, "delta"))
    if not mu > 0:
        return 0.0

    def excess(epsilon: float) -> float:
        """log of delta(epsilon), less that of `delta`."""
        above, below = (float(normal.logcdf(-epsilon / mu + s * mu / 2)) for s in (1, -1))
        gap = epsilon + below - above
        return (above + math.log1p(-math.exp(gap)) if gap < 0 else -math.inf) - log_delta

    if excess(0.0) <= 0:
        return 0.0
    if excess(LARGEST) >= 0:
        return LARGEST
    return float(needed("scipy.optimize").brentq(excess, 0.0, LARGEST, xtol=1e-9))


def guesses(correct: int, guessed: int, canaries: int, delta: float,
            confidence: float = CONFIDENCE) -> float:
    """Returns a lower bound of epsilon at `delta` from `correct` of `guessed` coins of one run
    (arXiv 2305.08846).

    `canaries`: coins in all, those abstained from included. Raises ConfigError.
    """
    whole(guessed, "guessed", 0), whole(canaries, "canaries", guessed)
    miss = 1 - probability(confidence, "confidence")

    def excess(epsilon: float) -> float:
        return miss - _chance(correct, guessed, canaries, epsilon, delta)

    if guessed == 0 or excess(0.0) <= 0:
        return 0.0
    return LARGEST if excess(LARGEST) >= 0 else float(
        needed("scipy.optimize").brentq(excess, 0.0, LARGEST, xtol=1e-9))


def _chance(correct: int, guessed: int, canaries: int, epsilon: float, delta: float) -> float:
    """Largest probability, under (epsilon, delta), of so many correct guesses: Theorem 5.2 of
    Steinke et al.
    """
    binomial = needed("scipy.stats").binom
    share = 1 / (1 + math.exp(-epsilon))
    beta = float(binomial.sf(correct - 1, guessed, share))
    fewer = np.arange(1, correct + 1)
    steepest = float(
        ((binomial.sf(correct - fewer - 1, guessed, share) - beta) / fewer).max(initial=0.0))
    return min(1.0, beta + 2 * canaries * delta * steepest)
