"""From an attack's hits to a lower bound of epsilon, by exact binomial (Clopper-Pearson) bounds.

`pair` and `gaussian` take the scores of runs with and without the canary, and a threshold. The
threshold was chosen beforehand, so nothing has to be corrected for a search. `guesses` takes the
coins of one run. Confidence is one-sided.
"""

from __future__ import annotations

import math

import numpy as np

from fxperex.privacy.checks import needed, probability, whole_number

CONFIDENCE = 0.95
LARGEST = 100.0  # epsilon beyond which nobody asks


def upper(errors: int, trials: int, miss: float) -> float:
    """Returns an upper bound of the rate that gave `errors` in `trials`; it is too low with
    probability `miss`.
    """
    if errors >= trials:
        return 1.0
    return float(needed("scipy.stats").beta.isf(miss, errors + 1, trials - errors))


def error_rates(present: np.ndarray, absent: np.ndarray, threshold: float,
                confidence: float) -> tuple[float, float]:
    """Returns upper bounds of (misses, false alarms) of the rule "score >= threshold means
    present". Both hold together at `confidence`.
    """
    miss = (1 - probability(confidence, "confidence")) / 2
    return (upper(int((present < threshold).sum()), len(present), miss),
            upper(int((absent >= threshold).sum()), len(absent), miss))


def pair(present: np.ndarray, absent: np.ndarray, threshold: float, delta: float,
         confidence: float = CONFIDENCE) -> float:
    """Returns a lower bound of epsilon at `delta` for any mechanism: `log((hits - delta) / false
    alarms)` (Nasr et al., arXiv 2101.04535). Raises ConfigError.
    """
    misses, alarms = error_rates(present, absent, threshold, confidence)
    return max(0.0, math.log(max(1 - misses - delta, alarms) / alarms))


def gaussian(present: np.ndarray, absent: np.ndarray, threshold: float, delta: float,
             confidence: float = CONFIDENCE) -> float:
    """Returns a lower bound of epsilon at `delta` for a Gaussian mechanism (arXiv 2302.07956).

    `mu >= -z(misses) - z(false alarms)`; epsilon from mu by Dong et al., Corollary 2.13 (arXiv
    1905.02383). A claim of mu is refuted by more. Raises ConfigError.
    """
    normal = needed("scipy.stats").norm
    rates = error_rates(present, absent, threshold, confidence)
    return epsilon_of_mu(sum(float(normal.isf(rate)) for rate in rates), delta)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Returns the epsilon of mu-Gaussian privacy at `delta`, up to 100. Raises ConfigError."""
    normal, log_delta = needed("scipy.stats").norm, math.log(probability(delta, "delta"))
    if not mu > 0:
        return 0.0

    def excess(epsilon: float) -> float:
        """Returns log delta(epsilon) - log delta."""
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
    whole_number(guessed, "guessed", 0), whole_number(canaries, "canaries", guessed)
    miss = 1 - probability(confidence, "confidence")

    def excess(epsilon: float) -> float:
        return miss - _chance(correct, guessed, canaries, epsilon, delta)

    if guessed == 0 or excess(0.0) <= 0:
        return 0.0
    if excess(LARGEST) >= 0:
        return LARGEST
    return float(needed("scipy.optimize").brentq(excess, 0.0, LARGEST, xtol=1e-9))


def _chance(correct: int, guessed: int, canaries: int, epsilon: float, delta: float) -> float:
    """Returns the largest probability, under (epsilon, delta), of at least `correct` guesses
    (Steinke et al., Theorem 5.2).
    """
    binomial = needed("scipy.stats").binom
    share = 1 / (1 + math.exp(-epsilon))
    beta = float(binomial.sf(correct - 1, guessed, share))
    fewer = np.arange(1, correct + 1)
    slopes = (binomial.sf(correct - fewer - 1, guessed, share) - beta) / fewer
    steepest = float(slopes.max(initial=0.0))
    return min(1.0, beta + 2 * canaries * delta * steepest)
