"""Killed at any point, a run goes on to the same parameters or pays again; privacy spent is never
under-counted.
"""

from __future__ import annotations

import functools
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes import BATCH, EVERY, MAKING, POINTS, STEPS, digits, forked, told, train

from fxperex.privacy import PoissonSampler, epsilon

Run = Callable[..., int]
# steps done when the signal comes: before any checkpoint of a step, and after one
FIRST, LATER = 1, EVERY + 2


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return digits()


@pytest.fixture(scope="module")
def smooth(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("smooth")
    began = time.monotonic()
    assert forked(lambda: train(*made, folder)) == 0
    (folder / "seconds").write_text(str(time.monotonic() - began))
    assert told(folder) | {"weights": ""} == {
        "steps": STEPS, "units": STEPS, "extra": 0, "weights": ""
    }
    return folder


@pytest.fixture
def run(made: Any, smooth: Path, tmp_path: Path) -> Run:
    """Runs with the uninterrupted run's secret, and so its rows and its noise."""
    shutil.copy(smooth / "secret", tmp_path / "secret")
    return lambda *order, kill_after=None, data=made[1], **change: forked(
        lambda: train(made[0], data, tmp_path, *order, **change), kill_after)


@functools.cache
def _epsilon(units: int) -> float:
    return epsilon(PoissonSampler(1437, BATCH, units), 1.0, 1e-4, method="rdp")


def _never_less(found: dict[str, Any], smooth: dict[str, Any]) -> None:
    """Bit-equal, or drawn afresh with the extra debit recorded; epsilon is never lower."""
    assert found["steps"] == smooth["steps"] and _epsilon(found["units"]) >= _epsilon(
        smooth["units"])
    assert found["weights"] == smooth["weights"] or found["extra"] > 0
    assert found["units"] == smooth["units"] + found["extra"]


@pytest.mark.parametrize("step", [LATER, pytest.param(FIRST, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("point", POINTS)
def test_kill_9_at_every_point(point: str, step: int, run: Run, smooth: Path,
                               tmp_path: Path) -> None:
    assert run(point, step) == -signal.SIGKILL and not (tmp_path / "told.json").exists()
    assert run() == 0
    _never_less(told(tmp_path), told(smooth))
    assert told(tmp_path) == told(smooth), "one thread of a CPU repeats its sums bit for bit"


@pytest.mark.parametrize("point", MAKING)
def test_kill_9_while_the_folder_is_made(point: str, made: Any, tmp_path: Path) -> None:
    assert forked(lambda: train(*made, tmp_path, point)) == -signal.SIGKILL
    assert forked(lambda: train(*made, tmp_path)) == 0
    assert told(tmp_path) | {"weights": ""} == {
        "steps": STEPS, "units": STEPS, "extra": 0, "weights": ""
    }


def test_killed_again_and_again(run: Run, smooth: Path, tmp_path: Path) -> None:
    for step, point in enumerate(list(POINTS)[:STEPS]):
        assert run(point, step) == -signal.SIGKILL
    assert run() == 0 and told(tmp_path) == told(smooth)


@pytest.mark.parametrize(("point", "ends"), [("during the sum", 2), ("during the update", 1),
                                             ("during the checkpoint", EVERY),
                                             ("between steps", 2)])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(point: str, ends: int, number: int,
                                                                code: int, run: Run, smooth: Path,
                                                                tmp_path: Path) -> None:
    assert run(point, FIRST, number) == code
    assert f'"step": {ends},' in (max(tmp_path.glob("checkpoint-*")) / "state.json").read_text()
    assert run() == 0 and told(tmp_path) == told(smooth)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_run_whose_readers_live_on_can_be_gone_on_with_at_once(
        run: Run, made: Any, smooth: Path, tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(*made[1])
    assert run("during the sum", FIRST, data=data, workers=1) == -signal.SIGKILL
    assert run() == 0 and told(tmp_path) == told(smooth)


@pytest.mark.parametrize("at", range(3))
def test_kill_9_at_random_times(at: int, run: Run, smooth: Path, tmp_path: Path) -> None:
    _at_random(at, run, smooth, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("at", range(3, 53))
def test_kill_9_at_50_random_times(at: int, run: Run, smooth: Path, tmp_path: Path) -> None:
    _at_random(at, run, smooth, tmp_path)


def _at_random(at: int, run: Run, smooth: Path, tmp_path: Path) -> None:
    wait = float((smooth / "seconds").read_text()) * float(
        torch.rand(1, generator=torch.Generator().manual_seed(at)))
    assert run(kill_after=wait) in (-signal.SIGKILL, 0)
    assert run() == 0
    _never_less(told(tmp_path), told(smooth))
