"""A rank that dies: the others say so at once, the debit stands, and any number of ranks goes on to
the same parameters.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from gloo import Pool
from training import UNEVEN, engine_of, mlp, outcome, private_of, trained

from fxperex.errors import RankError
from fxperex.privacy import PrivacyEngine
from fxperex.privacy.gate import Gate
from fxperex.privacy.logical_step import LogicalStep
from fxperex.privacy.noise.gaussian import Noise
from fxperex.privacy.records.spending import Books
from fxperex.ranks import ranks_of
from fxperex.runtime.module import PerExampleModule

LEFT, EVERY = 3, 2
# The callee before whose call, in the step of death, the process ends.
POINTS = {"begin": (Books, "begin"), "rows": (LogicalStep, "parts"),
          "sums": (PerExampleModule, "sums"), "record": (Books, "summed"),
          "noise": (Noise, "release_parts"), "update": (Gate, "update")}


def _single(**change: Any) -> PrivacyEngine:
    return engine_of(private_of(mlp(torch.float32)), **{"checkpoint_every": EVERY} | change)


@contextmanager
def _armed(point: str, step: int, engine: PrivacyEngine) -> Iterator[None]:
    owner, name = POINTS[point]
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        # The steps done are counted before the noise.
        if engine.steps_done == step + (point in ("noise", "update")):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, call):
        yield


def _dies(rank: int, folder: Path, victim: int, point: str, step: int) -> None:
    with _single(folder=folder) as engine:
        try:
            if rank != victim:
                list(engine)
            with _armed(point, step, engine):
                list(engine)
        except RankError as e:
            assert "What was debited stands. Start all processes again" in str(e)
            raise SystemExit(LEFT) from e


def _goes_on(rank: int, folder: Path) -> dict[str, Any]:
    with _single(folder=folder) as engine:
        begun = engine.books.units
        list(engine)
        return outcome(engine) | {"begun": begun, "resumed": any(engine.books.ledger.of("resume"))}


def _holds(found: dict[str, Any], smooth: dict[str, Any], step: int, point: str) -> None:
    """Never under-counted, and bit for bit the run that nobody disturbed."""
    debited = step + (point != "begin")
    assert found["begun"] >= debited and found["resumed"]
    assert (found["steps"], found["units"], found["extra"]) == (len(UNEVEN), len(UNEVEN), 0)
    assert found["hashes"] == smooth["hashes"]
    for name, value in smooth["parameters"].items():
        assert torch.equal(found["parameters"][name], value)


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("smooth")
    return trained(mlp(torch.float32), folder=folder, checkpoint_every=EVERY)


CASES = [(1, "sums", 3)]
SWEEP = [case for case in itertools.product((0, 1), POINTS, (0, 2, 3)) if case not in CASES]


@pytest.mark.parametrize(("victim", "point", "step"), [
    *CASES, *(pytest.param(*case, marks=pytest.mark.nightly) for case in SWEEP)])
def test_a_run_killed_on_two_ranks_goes_on_on_any_number(
        victim: int, point: str, step: int, pool: Pool, smooth: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    codes = pool.codes(_dies, 2, folder, victim, point, step)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == LEFT
    shutil.copytree(folder, tmp_path / "copy")
    for found in pool.run(_goes_on, 4, folder):
        _holds(found, smooth, step, point)
    _holds(_goes_on(0, tmp_path / "copy"), smooth, step, point)


def _ends(rank: int, folder: Path) -> None:
    """Gets a signal on rank 1 alone, in step 1."""
    with _single(folder=folder, checkpoint_every=50) as engine:
        for _ in engine:
            if rank == 1 and engine.steps_done == 2:
                os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_one_rank_ends_all_after_the_same_step(pool: Pool, tmp_path: Path,
                                                           smooth: Any) -> None:
    assert pool.codes(_ends, 2, tmp_path / "run") == [128 + signal.SIGTERM] * 2
    with _single(folder=tmp_path / "run", checkpoint_every=50) as engine:
        assert engine.steps_done == 2 and engine.books.units == 2
        list(engine)
        ended = outcome(engine)
    for name, value in smooth["parameters"].items():
        assert torch.equal(ended["parameters"][name], value)


def _refused(rank: int, folder: Path) -> str:
    """What each rank raises if rank 0 cannot write the debit."""
    with _single(folder=folder) as engine, mock.patch(
            "fxperex.privacy.records.ledger.os.fsync", side_effect=OSError(28, "no room")):
        with pytest.raises(Exception, match="no room") as caught:
            engine.step()
        assert engine.steps_done == 0 and ranks_of().size == 2
        return type(caught.value).__name__ + str(engine.books.units)


def test_a_debit_that_is_not_on_disk_stops_every_rank(pool: Pool, tmp_path: Path) -> None:
    assert pool.run(_refused, 2, tmp_path / "run") == ["LedgerError0"] * 2
