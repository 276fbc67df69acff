"""Half a discrete Gaussian on multiples of a power of two, drawn by table: the proposal of
`fxperex.privacy.noise.discrete`.

P(k) is proportional to exp(-(k step)^2 / 2 sigma^2) for k = 0, 1, 2, ...; k is the number of
cumulative probabilities below a uniform number. They are computed with integers and decimal
fractions to as many digits as a draw needs.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache

import numpy as np

DIGITS = 40  # of a probability; a word has 20
SPARE = 20  # further digits, for rounding and for the tail that is left out
CELL_BITS = 12
END = 2**64 - 1
UNKNOWN = -1.0


class Coarse:
    """The table of one sigma of at least 1: the `step` and the thresholds of 64-bit words."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        # 16 to 32 steps in one sigma, or steps of 1: then 97 of 100 proposals are accepted.
        self.shift = max(0, int(sigma).bit_length() - 5)
        # A word equal to a threshold does not decide k. The threshold at the end stands for all
        # that are too near 1 for a word.
        self.thresholds = np.array([*_words(sigma, self.shift), END], dtype=np.uint64)
        starts = np.arange(2**CELL_BITS, dtype=np.uint64) << np.uint64(64 - CELL_BITS)
        ends = starts + np.uint64(2**(64 - CELL_BITS) - 1)
        low = np.searchsorted(self.thresholds, starts, "left")
        high = np.searchsorted(self.thresholds, ends, "right")
        self._cells = np.where(low == high, low.astype(np.float64) * self.step, UNKNOWN)

    @property
    def step(self) -> float:
        return float(2**self.shift)

    def lookup(self, words: np.ndarray, room: np.ndarray, result: np.ndarray) -> np.ndarray:
        """Writes `k step` of each of `words`, uint64, to `result`. Returns the places of the words
        that do not decide k.

        room: scratch of the same length, int64. Most words are in a cell without a threshold; the
        others are looked up by bisection.
        """
        np.right_shift(words, np.uint64(64 - CELL_BITS), out=room.view(np.uint64))
        np.take(self._cells, room, out=result, mode="clip")
        searched = np.flatnonzero(result == UNKNOWN)
        values = words[searched]
        k = np.searchsorted(self.thresholds, values)
        result[searched] = k * self.step
        return searched[self.thresholds[k] == values]

    def exactly(self, word: int, bits: Callable[[int], int]) -> int:
        """Returns k for any uniform number: it begins with `word`, and `bits` are its further bits.
        """
        k = int(np.searchsorted(self.thresholds, np.uint64(word)))
        while not below(bits, self._cumulative(k)):
            k += 1
        return k

    def _cumulative(self, k: int) -> Callable[[int], Decimal]:
        return lambda digits: _nth(cumulative(self.sigma, self.shift, digits), k)


def _words(sigma: float, shift: int) -> list[int]:
    """Returns the first 64 bits of each cumulative probability, as far as they are below `END`. It
    takes more digits while DIGITS do not decide them.
    """
    digits = DIGITS
    while True:
        with localcontext(_precise(digits)):
            error = Decimal(10) ** -digits
            lower, upper = ([int(((c + e) * 2**64).to_integral_value(ROUND_FLOOR))
                             for c in cumulative(sigma, shift, digits)] for e in (-error, error))
        words = [w for w in lower if w < END]
        if words == [w for w in upper if w < END]:
            return words
        digits *= 2


def _nth(values: tuple[Decimal, ...], k: int) -> Decimal:
    """Returns a cumulative probability; past the end it is 1, to the computed digits."""
    return values[k] if k < len(values) else Decimal(1)


@lru_cache(maxsize=8)
def cumulative(sigma: float, shift: int, digits: int) -> tuple[Decimal, ...]:
    """Returns P(0 to k) for k = 0, 1, ... until it is 1, each within 10^-digits."""
    with localcontext(_precise(digits)):
        spread = 2 * Decimal(sigma) ** 2
        weights: list[Decimal] = []
        # The tail that is left out is below twice the final term: each further term is below 0.63
        # of the one before it.
        while not weights or weights[-1] > Decimal(10) ** -(digits + SPARE // 2):
            weights.append((-(Decimal(len(weights) << shift) ** 2) / spread).exp())
        total, sums = sum(weights), [Decimal(0)]
        for weight in weights:
            sums.append(sums[-1] + weight)
        return tuple(s / total for s in sums[1:])


def chance(low: float, base: float, sigma: float) -> Callable[[int], Decimal]:
    """Returns exp(-low (low + 2 base) / 2 sigma^2), as a function of the digits asked for."""
    def value(digits: int) -> Decimal:
        with localcontext(_precise(digits)):
            distance = Decimal(low) * (Decimal(low) + 2 * Decimal(base))
            return (-distance / (2 * Decimal(sigma) ** 2)).exp()

    return value


def below(bits: Callable[[int], int], value: Callable[[int], Decimal]) -> bool:
    """Returns whether a uniform number in [0, 1) is below a real one, taking more digits of both
    until that is certain.

    bits(n): the uniform number's first n bits, as a whole number. value(digits): the real number,
    within 10^-digits.
    """
    digits = DIGITS
    while True:
        count = 4 * digits
        with localcontext(_precise(digits)):
            distance = Decimal(bits(count)) / Decimal(2**count) - value(digits)
            # The bits that are not asked for yet, and the real number's error, are each below
            # 10^-digits.
            if abs(distance) > 3 * Decimal(10) ** -digits:
                return distance < 0
        digits *= 2


def _precise(digits: int) -> Context:
    return Context(prec=digits + SPARE, rounding=ROUND_HALF_EVEN, Emin=-10**9, Emax=10**9)
