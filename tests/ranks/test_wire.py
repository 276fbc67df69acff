"""What a step would take on many devices: padding as it is drawn, bytes over bandwidth."""

from __future__ import annotations

import pytest
import torch

from fxperex.cli import main
from fxperex.errors import ConfigError
from fxperex.planner.wire import Wire, bandwidth, spread


@pytest.mark.parametrize(("ranks", "rows", "mean"), [(1, 8, 5.0), (8, 16, 128.0), (64, 4, 1024.0)])
def test_padding_is_that_of_drawn_steps(ranks: int, rows: int, mean: float) -> None:
    g = torch.Generator().manual_seed(0)
    drawn = torch.poisson(torch.full((100_000, ), mean, dtype=torch.float64), generator=g)
    batches = ((drawn / rows).ceil() / ranks).ceil().clamp(min=1)
    found = spread(1.0, rows, 10, 40.0, Wire(ranks, 1e9), mean)
    assert found.batches == pytest.approx(float(batches.mean()), rel=0.01)
    assert found.padding == pytest.approx(found.batches * rows * ranks / mean)
    assert found.compute == pytest.approx(found.batches)


def test_sixteen_rows_a_rank_need_little_padding() -> None:
    least = min(spread(1.0, rows, 1, 4.0, Wire(64, 1e9), 16 * 64).padding for rows in (2, 4, 8))
    assert least <= 1.10


def test_sums_travel_in_float64_and_means_in_the_parameters_dtype() -> None:
    found = spread(1.0, 4, 10**9, 2e9, Wire(4, 1e9, latency=0.0))
    assert found.reduce == pytest.approx(8 * 0.75) and found.gather == pytest.approx(2 * 0.75)
    alone = spread(1.0, 4, 10**9, 2e9, Wire(1, 1e9))
    assert alone.reduce == alone.gather == 0.0
    assert alone.efficiency == pytest.approx(1 / alone.padding)


def test_a_link_reads_as_people_write_it_and_no_ranks_are_refused() -> None:
    assert bandwidth("45GB/s") == 45e9
    with pytest.raises(ConfigError, match="ranks must be a whole number above 0; got 0"):
        Wire(0, 1e9)
    with pytest.raises(ConfigError, match="expected batch must be"):
        spread(1.0, 4, 1, 4.0, Wire(4, 1e9), -1.0)


def test_explain_says_what_many_devices_take(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "torch.nn:Identity", "--ranks", "0"])
    assert "ranks must be" in capsys.readouterr().err
    assert main(["explain", f"{__name__}:small", "--input", "3x2x2", "--ranks", "1024", "--link",
                 "45GB/s"]) == 0
    assert "on 1024 ranks, 41.9 GiB/s each way" in capsys.readouterr().out


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
