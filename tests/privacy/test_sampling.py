"""The batches are Poisson, their rate is exact, and the account reads it from the sampler."""

from __future__ import annotations

import dp_accounting
import pytest
import torch

from fxperex.errors import ConfigError
from fxperex.privacy import PoissonSampler


def test_rate_is_the_realised_threshold() -> None:
    for size, batch in ((1437, 256), (60000, 512), (3, 1), (10**9, 7.5)):
        sampler = PoissonSampler(size, batch, 1, seed=0)
        assert int(sampler.rate * 2**64) == sampler.threshold
        assert sampler.rate == pytest.approx(batch / size, rel=2.0**-50)


def test_batches_have_binomial_sizes() -> None:
    sampler = PoissonSampler(1000, 200, 500, seed=1)
    sizes = torch.tensor([float(len(rows)) for rows in sampler])
    assert len(sizes) == 500
    # 500 draws of Binomial(1000, 0.2): standard errors 0.57 of the mean and 0.4 of the spread
    # 12.65.
    assert abs(sizes.mean() - 200) < 3
    assert abs(sizes.std() - 12.65) < 2


def test_examples_join_independently_and_alike() -> None:
    joined = torch.zeros(4000, 20)
    for i, rows in enumerate(PoissonSampler(20, 5, 4000, seed=2)):
        assert rows.dtype == torch.int64 and (rows[1:] > rows[:-1]).all()
        joined[i, rows] = 1
    assert (joined.mean(0) - 0.25).abs().max() < 0.035
    together = torch.corrcoef(joined.T) - torch.eye(20)
    assert together.abs().max() < 0.07


def test_everyone_or_no_one() -> None:
    assert [len(rows) for rows in PoissonSampler(7, 7, 3)] == [7, 7, 7]
    rare = PoissonSampler(5, 1e-6, 4, seed=0)
    assert [rows.shape for rows in rare] == [(0,)] * 4


def test_seeds_and_the_operating_system() -> None:
    def first(seed: int | None) -> list[int]:
        return next(iter(PoissonSampler(200, 100, 1, seed))).tolist()

    assert first(3) == first(3) != first(4)
    assert first(None) != first(None)
    sampler = PoissonSampler(200, 100, 2, seed=3)
    assert len(list(sampler)) == 2 and not list(sampler)  # used up: no batch is ever drawn twice


def test_global_seeds_are_neither_read_nor_written() -> None:
    before = torch.random.get_rng_state()
    next(iter(PoissonSampler(10, 5, 1)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_event_is_that_of_one_step() -> None:
    sampler = PoissonSampler(100, 7, 5, seed=0)
    assert sampler.event(1.5) == dp_accounting.PoissonSampledDpEvent(
        sampler.rate, dp_accounting.GaussianDpEvent(1.5))


@pytest.mark.parametrize("arguments", [(0, 1, 1), (10, 0, 1), (10, 11, 1), (10, float("nan"), 1),
                                       (10, 5, -1), (10, 5, 1.5), (True, 1, 1), (10, 5, 1, "seed"),
                                       (10, 1e-25, 1)])
def test_nonsense_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError):
        PoissonSampler(*arguments)  # type: ignore[arg-type]
