"""Statistics of who takes part: rates, independence and sizes, each at a false alarm rate of 1e-6;
and what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from fxperex.errors import ConfigError, SamplingError
from fxperex.privacy import (
    PoissonSampler,
    PrivacyEngine,
    Sampler,
    Secret,
    ShuffledSampler,
    TruncatedPoissonSampler,
    epsilon,
)

Z, RARE = 4.9, 1e-6
FRESH = pytest.mark.nightly
SECRETS = {
    "chacha20": lambda: Secret(value=bytes(range(32))), "philox": lambda: Secret(0),
    "fresh": Secret, "fresh philox": lambda: Secret(secure=False)
}


@pytest.fixture(params=[
    "chacha20", "philox",
    pytest.param("fresh", marks=FRESH),
    pytest.param("fresh philox", marks=FRESH)
])
def secret(request: pytest.FixtureRequest) -> Secret:
    return SECRETS[request.param]()


def _z(hits: float, trials: float, probability: float) -> float:
    return abs(hits - trials * probability) / math.sqrt(trials * probability * (1 - probability))


def _fits(seen: Any, expected: Any) -> bool:
    """Whether a chi-square test takes `seen` for draws of `expected` counts; cells below 5 are put
    together.
    """
    seen, expected = np.asarray(seen, float), np.asarray(expected, float)
    few = expected < 5
    seen, expected = (np.append(v[~few], v[few].sum()) if few.any() else v
                      for v in (seen, expected))
    keep = expected > 0
    return float(stats.chisquare(seen[keep],
                                 expected[keep] * seen.sum() / expected.sum()).pvalue) > RARE


def test_rate(secret: Secret) -> None:
    """5e7 decisions: an error of 0.7 % of the rate is seen, and of 3 % in any row's own rate on
    average.
    """
    sampler = PoissonSampler(50_000, 500, 1_000, secret=secret)
    rows = np.zeros(50_000)
    for drawn in sampler:
        rows[drawn.numpy()] += 1
    assert _z(rows.sum(), 5e7, sampler.rate) < Z
    assert _fits(np.bincount(rows.astype(int), minlength=1_001),
                 50_000 * stats.binom.pmf(np.arange(1_001), 1_000, 0.01))


def test_pairs_are_independent(secret: Secret) -> None:
    """1e7 pairs each: neighbours in one step, the same row in two steps, in two generations, and of
    two secrets.
    """
    sampler = PoissonSampler(50_000, 5_000, 400, secret=secret)
    other = PoissonSampler(50_000, 5_000, 400, secret=Secret(value=bytes(32)))
    hits, before = dict.fromkeys(("rows", "steps", "generations", "secrets"),
                                 0), np.zeros(50_000, bool)
    for step in range(200):
        now, again, theirs = np.zeros((3, 50_000), bool)
        now[sampler.draw(step)], again[sampler.draw(step,
                                                    1)], theirs[other.draw(step)] = True, True, True
        hits["rows"] += int((now[:-1] & now[1:]).sum())
        hits["steps"] += int((now & before).sum())
        hits["generations"] += int((now & again).sum())
        hits["secrets"] += int((now & theirs).sum())
        before = now
    assert _z(hits["rows"], 200 * 49_999, 0.01) < Z and _z(hits["steps"], 199 * 50_000, 0.01) < Z
    assert _z(hits["generations"], 1e7, 0.01) < Z and _z(hits["secrets"], 1e7, 0.01) < Z


def test_sizes_are_binomial_and_empty_batches_are_among_them(secret: Secret) -> None:
    draws, sampler = 100_000, PoissonSampler(20, 1, 100_000, secret=secret)
    sizes = np.bincount([len(rows) for rows in sampler], minlength=21)
    assert _z(sizes[0], draws, 0.95**20) < Z and 0.35 < sizes[0] / draws < 0.37
    assert _fits(sizes, draws * stats.binom.pmf(np.arange(21), 20, 0.05))


def test_a_cut_batch_is_a_uniform_part_of_the_poisson_one(secret: Secret) -> None:
    draws, whole = 8_000, PoissonSampler(20, 6, 8_000, secret=secret)
    cut = TruncatedPoissonSampler(20, 6, 8_000, 8, secret=secret)
    sizes, rows = np.zeros(21), np.zeros(20)
    for step in range(draws):
        a, b = whole.draw(step), cut.draw(step)
        assert len(b) == min(len(a), 8) and np.isin(b, a).all() and (b[1:] > b[:-1]).all()
        sizes[len(b)] += 1
        rows[b.numpy()] += 1
    expected = stats.binom.pmf(np.arange(21), 20, 0.3)
    expected[8], expected[9:] = expected[8:].sum(), 0
    assert _fits(sizes, draws * expected) and sizes[9:].sum() == 0
    assert _fits(rows, np.full(20, rows.sum() / 20))


def test_the_cut_is_accounted_for() -> None:
    whole, cut = PoissonSampler(1_000, 50, 10,
                                seed=0), TruncatedPoissonSampler(1_000, 50, 10, 60, seed=0)
    assert cut.event(1.5) == dp_accounting.TruncatedSubsampledGaussianDpEvent(
        1_000, cut.rate, 60, 1.5)
    assert epsilon(cut, 1.5, 1e-5) > epsilon(whole, 1.5, 1e-5)
    never = TruncatedPoissonSampler(1_000, 50, 10, 1_000, seed=0)
    assert epsilon(never, 1.5, 1e-5) == pytest.approx(epsilon(whole, 1.5, 1e-5), rel=1e-3)
    with pytest.raises(ConfigError, match='use method "pld"'):
        epsilon(cut, 1.5, 1e-5, method="rdp")


def test_a_shuffle_uses_every_row_once_an_epoch() -> None:
    sampler = ShuffledSampler(23, 5, 12, seed=0)
    epochs = [torch.cat([sampler.draw(4 * epoch + i) for i in range(4)]) for epoch in range(3)]
    assert all(len(e) == 20 == len(e.unique()) for e in epochs)
    assert len({tuple(e.tolist())
                for e in epochs}) == 3 and [len(rows) for rows in sampler] == [5] * 12
    left_out = np.zeros(23)
    for step in range(0, 4 * 5_000, 4):
        batch = np.concatenate([sampler.draw(step + i).numpy() for i in range(4)])
        left_out += ~np.isin(np.arange(23), batch)
    assert _fits(left_out, np.full(23, 15_000 / 23))


def test_a_shuffle_has_the_guarantee_that_holds_for_it() -> None:
    """No amplification: as many Gaussians as epochs are touched, and none at all for one unit more
    or less.
    """
    sampler = ShuffledSampler(100, 20, 15, seed=0)
    assert sampler.event(2.0) == dp_accounting.GaussianDpEvent(2.0)
    assert [sampler.units(n)
            for n in (0, 1, 5, 6, 15)] == [0, 1, 1, 2, 3] and sampler.units(2, first=4) == 2
    account = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    account.compose(dp_accounting.GaussianDpEvent(2.0), 3)
    assert epsilon(sampler, 2.0, 1e-5,
                   relation="zero-out") == pytest.approx(account.get_epsilon(1e-5))
    assert epsilon(sampler, 2.0, 1e-5,
                   relation="zero-out") > 5 * epsilon(PoissonSampler(100, 20, 15), 20.0, 1e-5)
    with pytest.raises(ConfigError, match="no guarantee under the relation 'add-or-remove'"):
        epsilon(sampler, 2.0, 1e-5)


def test_shuffling_only_by_name(engine: Callable[..., PrivacyEngine]) -> None:
    data = TensorDataset(torch.zeros(40, 6), torch.zeros(40, dtype=torch.long))
    for loader in (DataLoader(data, 10, shuffle=True), torch.utils.data.RandomSampler(data)):
        with pytest.raises(SamplingError, match="draws its own batches"):
            engine(dataset=loader)
    with pytest.raises(ConfigError, match="no guarantee under the relation 'add-or-remove'"):
        engine(sampling="shuffled")
    told = engine(sampling="shuffled", relation="zero-out").guarantee()
    assert told.facts["sampler"]["amplified by sampling"] is False and "shuffled" in str(told)


def test_the_account_asks_the_sampler_and_nobody_else(engine: Callable[..., PrivacyEngine]) -> None:
    class Rare(PoissonSampler):
        """Says that it draws at a tenth of its rate; whoever believed anything else would report
        more.
        """

        def event(self, noise_multiplier: float) -> Any:
            return dp_accounting.PoissonSampledDpEvent(
                self.rate / 10, dp_accounting.GaussianDpEvent(noise_multiplier))

    run, honest = engine(sampling=Rare(40, 10, 4, seed=4)), engine()
    list(run), list(honest)
    assert run.epsilon() == epsilon(Rare(40, 10, 4), 1.3, 1e-3) < honest.epsilon()
    assert isinstance(run.sampler, Sampler)
