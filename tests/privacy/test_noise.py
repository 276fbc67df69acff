"""The noise is Gaussian of the asked spread, no two tensors share any of it, and none is used
twice.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import fxperex
from fxperex.clipping import Adaptive, Flat
from fxperex.config import SLACK
from fxperex.errors import PrivacyError
from fxperex.privacy import Mechanism, Noise, PrivacyEngine, Secret
from fxperex.privacy.noise.normal import box_muller, gaussian

# Draws with which a chi-square test sees an error of 1 % of the spread, 99.9 times in 100, at a
# false alarm rate of 1e-6.
DRAWS = 318_551
SECURE = [True, False]


def _noise(secret: Secret | None = None, std: float = 1.0, divisor: float = 1.0,
           kind: str = "gaussian", size: int = 4) -> Noise:
    return Noise(Mechanism(Flat(1.0), std, "add-or-remove", divisor, size, kind), secret
                 or Secret())


def _quantile(level: float, count: int) -> tuple[float, float]:
    """Bounds of chi-square of `count` degrees over `count`, by the normal approximation, exact
    enough at this count.
    """
    z = float(torch.special.ndtri(torch.tensor(level, dtype=torch.float64)))
    return 1 + z * math.sqrt(2 / count), 1 - z * math.sqrt(2 / count)


@pytest.mark.parametrize("kind", ["gaussian", "discrete"])
@pytest.mark.parametrize("secure", SECURE)
def test_spread_of_every_tensor(secure: bool, kind: str) -> None:
    noise = _noise(Secret(secure=secure), 2.0, 4.0, kind, DRAWS)
    low, high = _quantile(0.5e-6, DRAWS)
    for value in noise.release(
        [torch.full((DRAWS, ), 6.0),
         torch.full((DRAWS, ), 6.0, dtype=torch.float64)], 0):
        z = (value - 1.5) * 4.0 / noise.mechanism.std
        assert value.dtype == torch.float64 and low < float(z.square().mean()) < high
        assert abs(float(z.mean())) < 4.9 / math.sqrt(DRAWS)
        assert abs(float(z.pow(3).mean())) < 4.9 * math.sqrt(15 / DRAWS)
        assert abs(float(z.pow(4).mean()) - 3) < 4.9 * math.sqrt(96 / DRAWS)
        # Kolmogorov-Smirnov at level 1e-6: 2.7 / sqrt(n).
        cdf = torch.special.ndtr(z.sort().values)
        assert (cdf - torch.arange(1, len(z) + 1) / len(z)).abs().max() < 2.7 / math.sqrt(len(z))


def test_a_wrong_spread_would_be_seen() -> None:
    low, high = _quantile(0.5e-6, DRAWS)
    z = gaussian(Secret().streams("test"), DRAWS, 0)
    assert not low < float((1.01 * z).square().mean()) < high and not low < float(
        (0.99 * z).square().mean()) < high


@pytest.mark.parametrize("secure", SECURE)
def test_streams_do_not_meet(secure: bool) -> None:
    secret, count = Secret(secure=secure), 1_000_000
    draws = [
        gaussian(secret.streams(purpose, generation), count, step, item)
        for purpose in ("noise", "other")
        for generation in (0, 1)
        for step in (0, 1)
        for item in (0, 1)
    ]
    draws += [gaussian(Secret(secure=secure).streams("noise"), count, 0)]
    together = torch.corrcoef(torch.stack(draws)).fill_diagonal_(0)
    assert together.abs().max() < 4.9 / math.sqrt(count)
    words = np.concatenate([
        secret.streams("noise", g).bits(125_000, s, i)
        for g in (0, 1)
        for s in (0, 1)
        for i in (0, 1)
    ])
    assert len(np.unique(words)) == len(words)


def test_no_global_seed_reaches_the_noise() -> None:
    def draw() -> Tensor:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return _noise().release([torch.zeros(8)], 0)[0]

    assert not torch.equal(draw(), draw())
    before = torch.random.get_rng_state()
    draw_state = _noise().release([torch.zeros(8)], 0)
    assert torch.equal(before, torch.random.get_rng_state()) and draw_state


@pytest.mark.parametrize("kind", ["gaussian", "discrete"])
def test_the_noise_does_not_look_at_the_sum(kind: str) -> None:
    secret = Secret()
    for step in range(100):
        grid = _noise(secret, kind=kind).mechanism.grid or 2.0**-20
        sums = torch.randn(4, dtype=torch.float64).div(grid).round().mul(grid)
        bare = _noise(secret, kind=kind).release([torch.zeros(4, dtype=torch.float64)], step)[0]
        on = _noise(secret, kind=kind).release([sums], step)[0]
        torch.testing.assert_close(on - sums, bare, rtol=0, atol=1e-14)


def test_noise_is_given_once() -> None:
    noise = _noise()
    for step, generation in ((0, 0), (3, 0), (3, 1), (4, 1)):
        noise.release([torch.zeros(1)], step, generation)
    for step, generation in ((4, 1), (3, 1), (9, 0)):
        with pytest.raises(PrivacyError, match="never used twice"):
            noise.release([torch.zeros(1)], step, generation)
    adaptive = Noise(Mechanism(Adaptive(count_noise=2.0), 1.0, "add-or-remove", 10.0, 1), Secret())
    assert adaptive.count(0.0, 0) > -2
    with pytest.raises(PrivacyError, match="never used twice"):
        adaptive.count(0.0, 0)


def test_the_count_query_has_its_noise() -> None:
    noise = Noise(Mechanism(Adaptive(count_noise=3.0), 1.0, "add-or-remove", 10.0, 1), Secret())
    shares = torch.tensor([noise.count(2.0, step) for step in range(20_000)], dtype=torch.float64)
    assert abs(float(shares.mean()) - 0.7) < 4.9 * 0.3 / math.sqrt(20_000)
    assert abs(float(shares.std()) / 0.3 - 1) < 4.9 / math.sqrt(40_000)


def test_seeded_runs_repeat_and_secret_ones_do_not() -> None:
    def first(secret: Secret) -> Tensor:
        return _noise(secret).release([torch.zeros(4)], 0)[0]

    assert torch.equal(first(Secret(1)), first(
        Secret(1))) and not torch.equal(first(Secret(1)), first(Secret(2)))
    # torch.manual_seed on the CPU cannot tell these two apart.
    assert not torch.equal(first(Secret(1)), first(Secret(1 + 2**32)))
    assert not torch.equal(first(Secret()), first(Secret()))


def test_tails_are_not_cut() -> None:
    """The largest radius of the sampler is that of 2^-64; float32 noise ends at 5.77."""
    class Smallest:
        def fill(self, words: np.ndarray, *_: object) -> None:
            words[:] = 0

    assert float(gaussian(Smallest(), 2, 0)[0]) > 9.4  # type: ignore[arg-type]
    assert float(box_muller(torch.zeros(2, dtype=torch.int64))[0]) > 9.4
    # The largest words give the smallest radius, and nothing that is not finite.
    ends = torch.tensor([-2**63, -2**63, 2**63 - 1, 2**63 - 1, -1, -1, 0, 0])
    assert torch.isfinite(box_muller(ends)).all() and float(box_muller(ends)[:4].abs().max()) == 0


@pytest.mark.parametrize("secure", SECURE)
def test_shape_of_a_million_and_tails_of_ten(secure: bool) -> None:
    streams = Secret(secure=secure).streams("shape")
    z = gaussian(streams, 1_000_000, 0).numpy()
    assert abs(z.mean()) < 4.9e-3 and abs(stats.skew(z)) < 4.9 * math.sqrt(6e-6)
    assert abs(stats.kurtosis(z)) < 4.9 * math.sqrt(24e-6)
    assert stats.kstest(z, "norm").pvalue > 1e-6
    # Poisson with mean 68.0 beyond 4.5, and 5.73 beyond 5.
    sizes = [gaussian(streams, 2_500_000, step).abs() for step in range(1, 5)]
    assert 33 < sum(int((s > 4.5).sum())
                    for s in sizes) < 113 and 0 <= sum(int((s > 5).sum()) for s in sizes) < 21


def test_a_step_on_no_rows_releases_noise_of_its_spread_on_every_tensor() -> None:
    """The path as it is used, per tensor: transform, engine, mechanism, noise, divisor,
    optimizer.
    """
    model = nn.Sequential(nn.Linear(564, 565), nn.Linear(565, 3)).double()
    before = [p.detach().clone() for p in model.parameters()]
    x, y = torch.zeros(4, 564, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    step = fxperex.transform(model, (x, y), nn.functional.cross_entropy, clip=0.5, backend="eager")
    with PrivacyEngine(step, torch.optim.SGD(model.parameters(), lr=1.0), (x, y),
                       expected_batch=1e-9, epochs=1e-10, delta=1e-3, noise_multiplier=1.3) as run:
        assert len(run.step().norms) == 0
        for old, new in zip(before, model.parameters(), strict=True):
            z = (old - new.detach()) * 1e-9 / (1.3 * 0.5 * (1 + SLACK))
            spread = float(z.square().sum())
            assert 0.5e-6 < stats.chi2.cdf(spread, z.numel()) < 1 - 0.5e-6
        assert max(p.numel() for p in model.parameters()) >= DRAWS


@pytest.mark.nightly
@pytest.mark.parametrize("secure", SECURE)
def test_tail_beyond_59_in_a_thousand_million_draws(secure: bool) -> None:
    streams, beyond = Secret(secure=secure).streams("tail"), 0
    for step in range(250):
        beyond += int((gaussian(streams, 4_000_000, step).abs() > 5.9).sum())
    # Poisson with mean 3.63; 15 or more has probability 1e-5, none 0.03: three tries would be
    # refused wrongly once in 4e4.
    assert beyond < 15


def test_discrete_release_lies_on_the_grid() -> None:
    noise = _noise(kind="discrete", divisor=1.0, size=100)
    value = noise.release([torch.randn(100)], 0)[0] / noise.mechanism.grid
    assert torch.equal(value, value.round())
    # Rounding to the grid can add at most half a grid per coordinate on either side, which the
    # noise covers.
    assert noise.mechanism.grid * math.sqrt(100) <= noise.mechanism.bound * 2.0**-20
    assert noise.mechanism.std >= noise.mechanism.bound + noise.mechanism.grid * math.sqrt(100)


def test_steps_differ_pairwise() -> None:
    noise = _noise()
    draws = [noise.release([torch.zeros(16)], step)[0] for step in range(50)]
    assert all(not torch.equal(a, b) for a, b in pairwise(draws))
