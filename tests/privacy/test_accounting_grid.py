"""400 settings: the account by PLD lies between an optimistic one and Renyi's, and moves the right
way with everything.
"""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
from dp_accounting.pld import privacy_loss_distribution as losses
from hypothesis import given, settings
from hypothesis import strategies as st

from fxperex.privacy import PoissonSampler, epsilon
from fxperex.privacy.accountant import FINE

SIZE = 100_000
RATES, SIGMAS = (1e-3, 4e-3, 0.01, 0.03, 0.1), (8.0, 3.0, 1.5, 1.0, 0.8)
STEPS, DELTAS = (1, 10, 100, 500), (1e-4, 1e-5, 1e-6, 1e-8)
GRID = list(product(SIGMAS, STEPS, DELTAS))


def _epsilon(rate: float, sigma: float, steps: int, delta: float, method: str = "pld") -> float:
    return epsilon(PoissonSampler(SIZE, rate * SIZE, steps, seed=0), sigma, delta, method=method)


@pytest.mark.parametrize("rate", [
    pytest.param(rate, marks=() if rate == 0.01 else pytest.mark.nightly) for rate in RATES])
def test_bracketed_and_monotone(rate: float) -> None:
    found = {at: _epsilon(rate, *at) for at in GRID}
    assert len(found) * len(RATES) == 400
    for sigma in SIGMAS:
        one = losses.from_gaussian_mechanism(sigma, pessimistic_estimate=False, sampling_prob=rate,
                                             use_connect_dots=False,
                                             value_discretization_interval=FINE)
        for steps in STEPS:
            composed = one.self_compose(steps)
            for delta in DELTAS:
                below, here = composed.get_epsilon_for_delta(delta), found[sigma, steps, delta]
                # The optimistic one loses half a grid cell a step.
                assert below <= here <= 1.02 * below + FINE * (2 + 0.6 * steps), (sigma, steps,
                                                                                  delta)
                assert here <= _epsilon(rate, sigma, steps, delta, "rdp"), (sigma, steps, delta)
    for delta in DELTAS:
        for sigma in SIGMAS:
            assert all(found[sigma, a, delta] <= found[sigma, b, delta] for a, b in pairwise(STEPS))
        for steps in STEPS:
            assert all(
                found[a, steps, delta] <= found[b, steps, delta] for a, b in pairwise(SIGMAS))
    for sigma, steps in product(SIGMAS, STEPS):
        assert all(found[sigma, steps, a] <= found[sigma, steps, b] for a, b in pairwise(DELTAS))


@pytest.mark.parametrize("sigma", [8.0, 3.0, 1.5])
def test_more_often_costs_more(sigma: float) -> None:
    for delta in DELTAS:
        assert all(a < b for a, b in pairwise(_epsilon(rate, sigma, 100, delta) for rate in RATES))


def _tail(x: float, sigma: float) -> float:
    return 0.5 * math.erfc(x / sigma / math.sqrt(2))


def _exact_delta(eps: float, rate: float, sigma: float) -> float:
    """Of one step, from the two mixtures themselves: one unit more, and one less (Mironov et al.
    2019, section 3).
    """
    def where(ratio: float) -> float:
        """The x at which the mixture is `ratio` times the bare Gaussian."""
        return sigma**2 * math.log((ratio - 1 + rate) / rate) + 0.5

    more = where(math.exp(eps))
    delta = (1 - rate) * _tail(more, sigma) + rate * _tail(more - 1, sigma) - math.exp(eps) * _tail(
        more, sigma)
    if math.exp(-eps) > 1 - rate:
        less = where(math.exp(-eps))
        mixed = (1 - rate) * _tail(-less, sigma) + rate * _tail(1 - less, sigma)
        delta = max(delta, _tail(-less, sigma) - math.exp(eps) * mixed)
    return delta


@pytest.mark.parametrize(("rate", "sigma", "delta"), [(0.001, 0.6, 1e-5), (0.01, 0.6, 1e-6),
                                                      (0.01, 1.0, 1e-5), (0.01, 2.0, 1e-6),
                                                      (0.05, 0.8, 1e-4), (0.05, 1.0, 1e-8),
                                                      (0.1, 1.5, 1e-5), (0.2, 1.0, 1e-5),
                                                      (0.2, 4.0, 1e-6), (0.5, 1.0, 1e-5),
                                                      (0.5, 2.0, 1e-4), (0.9, 3.0, 1e-5)])
def test_one_sampled_step_is_exact(rate: float, sigma: float, delta: float) -> None:
    found = _epsilon(rate, sigma, 1, delta)
    assert _exact_delta(found, rate, sigma) <= delta * (1 + 1e-9)
    assert _exact_delta(found - 2 * FINE, rate, sigma) > delta


def test_the_order_of_composition_does_not_matter() -> None:
    import dp_accounting

    events = [
        PoissonSampler(SIZE, rate * SIZE, 1, seed=0).event(sigma)
        for rate, sigma in ((0.01, 1.0), (0.1, 3.0), (0.03, 1.5))
    ]
    for make in (dp_accounting.pld.PLDAccountant, dp_accounting.rdp.RdpAccountant):
        there, back = make(), make()
        for event in events:
            there.compose(event, 20)
        for event in reversed(events):
            back.compose(event, 20)
        assert there.get_epsilon(1e-5) == pytest.approx(back.get_epsilon(1e-5), rel=1e-9)


RATE, SIGMA = st.floats(1e-4, 0.5), st.floats(0.5, 20.0)
COUNT, DELTA = st.integers(1, 10_000), st.floats(1e-10, 0.1)


def _moves_the_right_way(rate: float, sigma: float, steps: int, delta: float, by: float) -> None:
    here = _epsilon(rate, sigma, steps, delta, "rdp")
    assert math.isfinite(here) and here >= 0
    assert _epsilon(min(rate * by, 1.0), sigma, steps, delta, "rdp") >= here
    assert _epsilon(rate, sigma * by, steps, delta, "rdp") <= here
    assert _epsilon(rate, sigma, math.ceil(steps * by), delta, "rdp") >= here
    assert _epsilon(rate, sigma, steps, delta / by, "rdp") >= here


@settings(max_examples=20, deadline=None, derandomize=True)
@given(RATE, SIGMA, COUNT, DELTA, st.floats(1.01, 10.0))
def test_any_setting_moves_the_right_way(rate: float, sigma: float, steps: int, delta: float,
                                         by: float) -> None:
    _moves_the_right_way(rate, sigma, steps, delta, by)


@pytest.mark.nightly
@settings(max_examples=500, deadline=None)
@given(RATE, SIGMA, COUNT, DELTA, st.floats(1.01, 10.0))
def test_500_settings_move_the_right_way(rate: float, sigma: float, steps: int, delta: float,
                                         by: float) -> None:
    _moves_the_right_way(rate, sigma, steps, delta, by)
