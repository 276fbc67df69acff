"""The discrete noise is the discrete Gaussian, to the last digit of every decision."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from fxperex.errors import ConfigError, PrivacyError
from fxperex.privacy import Secret
from fxperex.privacy.noise import discrete
from fxperex.privacy.noise.coarse import END, Coarse, below, chance, cumulative
from fxperex.privacy.noise.discrete import Integers, discrete_gaussian
from fxperex.privacy.noise.streams import Streams

SIGMAS = [1.0, 1.7, 16.0, 40.0, 3.3e9]


@pytest.mark.parametrize("sigma", [1.0, 5.3, 40.0, 700.0])
def test_small_sigmas_by_chi_square(sigma: float) -> None:
    drawn = discrete_gaussian(sigma, 400_000, Secret().streams("test"), 0).numpy().astype(int)
    values = np.arange(-int(60 * sigma), int(60 * sigma) + 1)
    weights = np.exp(-(values**2) / (2 * sigma**2))
    expected = 400_000 * weights / weights.sum()
    counts = np.bincount(drawn - values[0], minlength=len(values))
    common = expected >= 5
    pairs = [[*v[common], v[~common].sum()] for v in (counts, expected)]
    assert stats.chisquare(*pairs).pvalue > 1e-6
    assert abs((drawn > 0).mean() - (drawn < 0).mean()) < 4.9 / math.sqrt(400_000)


def test_discrete_noise_is_the_discrete_gaussian() -> None:
    sigma, count = 1.7, 400_000
    drawn = discrete_gaussian(sigma, count, Secret().streams("test"), 0)
    values = torch.arange(-7, 8, dtype=torch.float64)
    weights = torch.exp(-values.square() / (2 * sigma**2))
    total = torch.exp(-torch.arange(-60, 61, dtype=torch.float64).square() / (2 * sigma**2)).sum()
    expected = count * weights / total
    counts = torch.tensor([float((drawn == v).sum()) for v in values], dtype=torch.float64)
    chi = float(((counts - expected).square() / expected).sum())
    # 15 cells: beyond 70 with probability 4e-9.
    assert torch.equal(drawn, drawn.round()) and chi < 70


def _exp(x: Fraction) -> Fraction:
    """exp(x) for x of at most 0 to 60 digits, by its series at a point near 0: no decimals, no
    library."""
    halvings = max(0, math.ceil(math.log2(max(1, -x)))) + 8
    small, term, total = x / 2**halvings, Fraction(1), Fraction(0)
    for k in range(40):
        total += term
        term = Fraction(round(term * small / (k + 1) * 10**80), 10**80)
    for _ in range(halvings):
        total = Fraction(round(total * total * 10**80), 10**80)
    return total


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_table_by_fractions(sigma: float) -> None:
    shift = Coarse(sigma).shift
    assert shift == 0 or 16 <= sigma / 2**shift < 32
    size = math.ceil(sigma / 2**shift * 16)
    weights = [_exp(-Fraction(k << shift) ** 2 / (2 * Fraction(sigma) ** 2)) for k in range(size)]
    total, cumulated = sum(weights), cumulative(sigma, shift, 40)
    so_far = Fraction(0)
    for weight, value in zip(weights, cumulated, strict=False):
        so_far += weight
        assert abs(Fraction(value) - so_far / total) < Fraction(1, 10**40)
    # The words are those in which the cumulative probabilities lie; each k is between the two
    # beside it.
    table = Coarse(sigma)
    words = [math.floor(Fraction(c) * 2**64) for c in cumulated]
    assert table.thresholds.tolist() == [w for w in words if w < END] + [END]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_words_are_looked_up_as_they_lie_in_the_table(sigma: float) -> None:
    table = Coarse(sigma)
    near = [t + d for t in table.thresholds.tolist() for d in (-1, 0, 1) if 0 <= t + d <= END]
    drawn = Secret(1).streams("x").bits(5000, 0)
    words = np.concatenate([np.array([*near, 0, END], np.uint64), drawn])
    result, room = np.empty(len(words)), np.empty(len(words), np.int64)
    unknown = set(table.lookup(words, room, result).tolist())
    thresholds = table.thresholds.tolist()
    for i, word in enumerate(words.tolist()):
        assert (i in unknown) == (word in thresholds)
        assert i in unknown or result[i] == sum(t < word for t in thresholds) * table.step


@pytest.mark.parametrize("sigma", [1.0, 5.3, 16.0, 40.0, 100.5])
def test_proposal_times_coin_is_the_discrete_gaussian(sigma: float) -> None:
    table = Coarse(sigma)
    coarse = [float(c) for c in cumulative(sigma, table.shift, 40)]
    step = int(table.step)
    for x in range(int(6 * sigma)):
        k, low = divmod(x, step)
        proposed = (coarse[k] - (coarse[k - 1] if k else 0)) / step
        accepted = proposed * float(chance(low, k * step, sigma)(40))
        expected = coarse[0] / step * math.exp(-x**2 / (2 * sigma**2))
        assert accepted == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sigma", [1.2, 40.0, 3.3e9, 2.0**48])
def test_doubtful_coins_are_tossed_with_all_digits(
        sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All coins in doubt: every decision of float64 is the one that all digits make."""
    streams = Secret(value=bytes(range(32))).streams("noise")
    quick = discrete_gaussian(sigma, 150, streams, 3, 1)
    calls: list[int] = []
    real = Integers._exactly

    def counted(self: Integers, words: list[int], *place: int) -> tuple[bool, float]:
        calls.append(1)
        return real(self, words, *place)

    monkeypatch.setattr(Integers, "_exactly", counted)
    assert torch.equal(discrete_gaussian(sigma, 150, streams, 3, 1), quick) and not calls
    monkeypatch.setattr(discrete, "DOUBTFUL", 2.0**65)
    assert torch.equal(discrete_gaussian(sigma, 150, streams, 3, 1), quick) and len(calls) >= 150


class _Fixed(Streams):
    """Words as set, and further bits that begin as set and are 0 after."""

    def __init__(self, words: list[int], beginning: bytes) -> None:
        super().__init__(bytes(32), True)
        self.set, self.beginning = words, beginning

    def fill(self, words: np.ndarray, *_: int) -> None:
        words[:] = np.resize(np.array(self.set, np.uint64), len(words))

    def further(self, size: int, *place: int) -> bytes:
        return (self.beginning + bytes(size))[:size]


@pytest.mark.parametrize("sigma", [1.7, 40.0, 3.3e9])
def test_words_that_leave_the_table_open_are_decided_by_further_bits(sigma: float) -> None:
    table = Coarse(sigma)
    # A coin of the smallest signed word is taken; low is 0 and the sign is plus.
    for k in (0, 1, 5):
        word = int(table.thresholds[k])
        lower = discrete_gaussian(sigma, 1, _Fixed([word, 0, 2**63], b""), 0)
        upper = discrete_gaussian(sigma, 1, _Fixed([word, 0, 2**63], b"\xff" * 16), 0)
        assert float(lower) == k * table.step and float(upper) == (k + 1) * table.step
    # The word at the end is all of the tail: how far out depends on the bits after it.
    tails = [_Fixed([END, 0, 2**63], b"\xff" * n) for n in (0, 4, 8, 16)]
    far = [float(discrete_gaussian(sigma, 1, tail, 0)) / sigma for tail in tails]
    expected = [float(stats.norm.isf(2.0 ** -(65 + 8 * n))) for n in (0, 4, 8, 16)]
    assert far == pytest.approx(expected, abs=1.5 * table.step / sigma)
    assert all(a < b for a, b in pairwise(far))


def test_the_chance_of_no_distance_is_1() -> None:
    assert chance(0, 0, 1.0)(40) == 1


def test_a_number_as_near_as_you_like_is_decided_by_the_digit_that_differs() -> None:
    third = Fraction(1, 3)
    for distance in (10, 45, 100, 700):
        for sign in (-1, 1):
            near = third + Fraction(sign, 10**distance)
            bits = lambda n, near=near: math.floor(near * 2**n)  # noqa: E731
            assert below(bits, _decimal(third)) == (sign < 0)


def _decimal(value: Fraction) -> Callable[[int], Decimal]:
    return lambda digits: Context(prec=digits + 5).divide(value.numerator, value.denominator)


def test_what_cannot_be_drawn_is_refused() -> None:
    streams = Secret().streams("noise")
    for sigma in (0.5, float("nan"), 2.0**49):
        with pytest.raises(ConfigError, match="1 to 2\\^48"):
            discrete_gaussian(sigma, 1, streams, 0)
    # A generator that is stuck on a coin that is never taken: refused, where a loop would never
    # end.
    with pytest.raises(PrivacyError, match="not random"):
        discrete_gaussian(40.0, 1, _Fixed([2**63, 1, 2**63 - 1], b""), 0)
