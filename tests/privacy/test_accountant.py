"""Epsilon against closed forms and bounds; calibration against epsilon."""

from __future__ import annotations

import math
import sys

import pytest

from fxperex.errors import ConfigError
from fxperex.privacy import PoissonSampler, accountant, epsilon, noise_multiplier_for


@pytest.fixture
def sampler() -> PoissonSampler:
    return PoissonSampler(1437, 256, 225, seed=0)


def _gaussian_delta(eps: float, sigma: float) -> float:
    """The exact delta of one Gaussian mechanism (Balle and Wang 2018)."""
    def phi(t: float) -> float:
        return 0.5 * math.erfc(-t / math.sqrt(2))

    return phi(0.5 / sigma - eps * sigma) - math.exp(eps) * phi(-0.5 / sigma - eps * sigma)


@pytest.mark.parametrize("steps", [1, 16])
def test_without_sampling_it_is_the_gaussian_mechanism(steps: int) -> None:
    found = epsilon(PoissonSampler(5, 5, steps), 2.0 * math.sqrt(steps), 1e-5)
    # Composition of Gaussians is a Gaussian; the account may only be above, and not by much.
    assert _gaussian_delta(found, 2.0) <= 1e-5 <= _gaussian_delta(found - 0.01, 2.0)


def test_monotone_and_pld_below_rdp(sampler: PoissonSampler) -> None:
    e = [epsilon(sampler, 4.0, 1e-4, steps=steps) for steps in (0, 10, 100)]
    assert e[0] == 0 < e[1] < e[2]
    assert epsilon(sampler, 5.0, 1e-4, steps=100) < e[2] < epsilon(sampler, 4.0, 1e-5, steps=100)
    assert e[2] < epsilon(sampler, 4.0, 1e-4, steps=100, method="rdp") < 1.3 * e[2]


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_calibration_is_tight_and_never_over(sampler: PoissonSampler, accountant: str) -> None:
    sigma = noise_multiplier_for(3.0, 1e-4, sampler, method=accountant)
    assert epsilon(sampler, sigma, 1e-4, steps=225, method=accountant) <= 3.0
    assert epsilon(sampler, 0.998 * sigma, 1e-4, steps=225, method=accountant) > 3.0


# Target, rows, expected batch, steps: a calibration on a coarse grid alone gave away 172 % of noise
# in the first, 8.5, 3.5, 1.3, 0.9 and 0.2 % in the others.
TABLE = [(0.01, 50_000, 256, 200), (0.1, 50_000, 256, 1000), (0.5, 50_000, 256, 4000)]
DEAREST = [(0.3, 1_000_000, 1024, 5000), (1.0, 1_000_000, 1024, 20_000), (1.0, 50_000, 256, 4000),
           (8.0, 50_000, 256, 4000), (50.0, 50_000, 1000, 2000)]


def _is_the_least(target: float, rows: int, batch: int, steps: int) -> None:
    draws = PoissonSampler(rows, batch, steps, seed=0)
    found = noise_multiplier_for(target, 1e-5, draws)
    assert epsilon(draws, found, 1e-5) <= target < epsilon(draws, 0.999 * found, 1e-5)


@pytest.mark.parametrize("case", TABLE)
def test_no_noise_is_given_away(case: tuple[float, int, int, int]) -> None:
    _is_the_least(*case)


@pytest.mark.nightly
@pytest.mark.parametrize("case", DEAREST)
def test_no_noise_is_given_away_in_dear_cases(case: tuple[float, int, int, int]) -> None:
    _is_the_least(*case)


def test_a_grid_wider_than_the_losses_is_not_used() -> None:
    """A million quiet steps: on a grid of 1e-4, PLD says 0.2485 where Renyi orders show 0.2070."""
    million = PoissonSampler(1_000_000, 1000, 10**6, seed=0)
    by = accountant.bound(million, 20.0, 1e-6, 10**6)
    assert by.method == "pld" and by.epsilon < 0.1994


def test_the_smaller_of_two_bounds_is_reported_and_named() -> None:
    """Losses of less than 1e-15 are cut off from PLD, so that it knows nothing of a delta below."""
    draws = PoissonSampler(1000, 100, 100, seed=0)
    assert math.isinf(epsilon(draws, 2.0, 1e-30, method="pld"))
    by = accountant.bound(draws, 2.0, 1e-30, 100)
    assert by.method == "rdp" and by.epsilon == epsilon(draws, 2.0, 1e-30) < 50
    assert accountant.bound(draws, 2.0, 1e-5, 100).method == "pld"
    assert epsilon(draws, 2.0, 1e-5) == epsilon(draws, 2.0, 1e-5, method="pld")


NONSENSE: dict[str, list[object]] = {
    "noise_multiplier": [0.0, -1.0, math.inf, math.nan, None, "1", True],
    "steps": [-5, 2.5, 1.0, math.nan, "3", True],
    "delta": [0.0, 1.0, 2.0, -1e-5, math.nan, math.inf, None, "1e-5", True],
    "method": ["moments", "gdp", "prv", None, 1, ["pld"]],
    "relation": ["neighbours", None, ["replace"]],
}


@pytest.mark.parametrize(("name", "value"),
                         [(name, value) for name, values in NONSENSE.items() for value in values])
def test_nonsense_never_reaches_the_accountant(name: str, value: object, sampler: PoissonSampler,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    arguments = {"noise_multiplier": 1.0, "steps": 0, "delta": 1e-5, name: value}
    with pytest.raises(ConfigError) as told:
        epsilon(sampler, **arguments)  # type: ignore[arg-type]
    assert "pip install" not in str(told.value)


@pytest.mark.parametrize("expected", [0, -0.1, 15, math.nan, math.inf, None, "5", True])
def test_rates_outside_0_to_1_are_no_samplers(expected: object) -> None:
    with pytest.raises(ConfigError, match="expected_batch must be"):
        PoissonSampler(10, expected, 1)  # type: ignore[arg-type]


def test_asking_again_is_free(sampler: PoissonSampler) -> None:
    first = epsilon(sampler, 1.1, 1e-5, steps=7)
    before = accountant._composed.cache_info().misses
    assert epsilon(sampler, 1.1, 1e-5, steps=7) == first > epsilon(sampler, 1.1, 1e-4, steps=7)
    assert accountant._composed.cache_info().misses == before


def test_unreachable_targets_are_refused(sampler: PoissonSampler) -> None:
    for target, delta in ((0.0, 1e-5), (math.inf, 1e-5), (-1.0, 1e-5), (1.0, 2.0)):
        with pytest.raises(ConfigError):
            noise_multiplier_for(target, delta, sampler)


def test_a_missing_package_says_what_to_install(sampler: PoissonSampler,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r'pip install "fxperex\[accounting\]"'):
        epsilon(sampler, 1.0, 1e-5, steps=1)
