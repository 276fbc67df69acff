"""Killed at any point, a run goes on to the same parameters or pays again; privacy spent is never under-counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fxperex.errors import LedgerError, PrivacyError
from fxperex.privacy import PrivacyEngine, faults
from fxperex.runtime import PerExampleModule

Make = Callable[..., PrivacyEngine]
EVERY = 2
X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the library catches it."""


@pytest.fixture
def run(engine: Make) -> Callable[..., PrivacyEngine]:
    def make(folder: Path, **change: Any) -> PrivacyEngine:
        return engine(folder=folder, checkpoint_every=EVERY, epochs=1.5, **change)

    return make


def _weights(made: PrivacyEngine) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in made.private.parameters.values()])


def _kill(monkeypatch: pytest.MonkeyPatch, point: str, count: int) -> list[int]:
    seen = [0]

    def reached(name: str) -> None:
        seen[0] += name == point
        if name == point and seen[0] == count:
            raise Killed(point)

    monkeypatch.setattr(faults, "reached", reached)
    return seen


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("point", faults.POINTS)
def test_every_point_is_survived(point: str, count: int, run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = run(tmp_path / "smooth")
    list(smooth)
    broken: PrivacyEngine | None = None
    with monkeypatch.context() as patch:
        seen = _kill(patch, point, count)
        with pytest.raises(Killed):
            broken = run(tmp_path / "killed")
            list(broken)
    assert seen[0] == count
    if broken is not None:
        broken.close()
        known = broken.books.units
    else:
        _let_go(tmp_path / "killed")
        known = 0
    again = run(tmp_path / "killed")
    assert again.books.units >= known
    list(again)
    assert torch.equal(_weights(again), _weights(smooth))
    assert again.books.units == smooth.books.units and again.books.extra == 0 and again.epsilon() == smooth.epsilon()


def test_a_sum_that_differs_is_drawn_afresh_and_paid_again(run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _kill(patch, "parameters updated", 4)
        first = run(tmp_path, seed=None)
        with pytest.raises(Killed):
            list(first)
    first.close()
    assert first.books.units == 4 and first.books.extra == 0
    again = run(tmp_path, seed=None)
    _drift(monkeypatch, again.private)
    assert again.steps_done == 2 and again.generation == 0
    list(again)
    # Steps 2 and 3 had been begun; both are done again with other rows and other noise, and both are paid twice.
    assert (again.steps_done, again.generation, again.books.units, again.books.extra) == (6, 1, 8, 2)
    assert "extra after crashes" in str(again.guarantee()) and again.guarantee().facts["account"]["extra steps"] > 0


def test_extra_debits_end_a_budgeted_run_early(run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _kill(patch, "parameters updated", 4)
        first = run(tmp_path, seed=None, noise_multiplier=None, epsilon=3.0)
        with pytest.raises(Killed):
            list(first)
    first.close()
    again = run(tmp_path, seed=None, noise_multiplier=None, epsilon=3.0)
    _drift(monkeypatch, again.private)
    list(again)
    assert again.steps_done < 6 and again.books.units == 6 and again.epsilon() <= 3.0


def test_resuming_a_finished_run_does_nothing(run: Make, tmp_path: Path) -> None:
    first = run(tmp_path)
    list(first)
    first.close()
    again = run(tmp_path)
    assert again.steps_done == 6 and not list(again) and torch.equal(_weights(first), _weights(again))


def test_disk_full_at_begin(run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(tmp_path)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _no_room)
        with pytest.raises(LedgerError, match="No space left"):
            made.step()
    assert made.books.units == 0 and (tmp_path / "ledger.jsonl").read_bytes() == before
    list(made)
    assert made.books.units == 6


def test_disk_full_at_checkpoint(run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(tmp_path)
    made.step()
    kept = sorted(tmp_path.glob("checkpoint-*"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", _no_room)
        with pytest.raises(LedgerError, match="No space left"):
            made.checkpoint()
    assert sorted(tmp_path.glob("checkpoint-*")) == kept and not (tmp_path / ".writing").exists()
    made.checkpoint()


def test_a_folder_that_cannot_be_made(run: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be used"):
        run(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(run: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LedgerError, match="Permission denied"):
        run(tmp_path)


def test_two_runs_on_one_folder(run: Make, tmp_path: Path) -> None:
    first = run(tmp_path)
    with pytest.raises(LedgerError, match="in use by another process"):
        run(tmp_path)
    first.close()
    run(tmp_path)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_save_and_exit(number: int, error: type[BaseException], run: Make, tmp_path: Path) -> None:
    made, handlers = run(tmp_path), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(error):
        for _ in made:
            os.kill(os.getpid(), number)
    assert made.steps_done == 1 and [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    made.close()
    again = run(tmp_path)
    assert again.steps_done == 1 and torch.equal(_weights(made), _weights(again))


class Rows(torch.utils.data.TensorDataset):
    """Dies or raises at one row, once armed."""

    how = ""

    def __getitem__(self, i: int) -> Any:
        if i % 3 == 0 and Rows.how == "raise":
            raise ValueError("bad record")
        if i % 3 == 0 and Rows.how == "die":
            os._exit(3)
        return super().__getitem__(i)


@pytest.mark.parametrize(("how", "workers"), [("raise", 0), ("raise", 1), ("die", 1)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_reader_that_raises_or_dies(how: str, workers: int, run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, smooth = run(tmp_path / "a", dataset=Rows(X, Y), workers=workers), run(tmp_path / "b")
    monkeypatch.setattr(Rows, "how", how)
    with pytest.raises(PrivacyError, match="could not be read"):
        made.step()
    assert (made.steps_done, made.books.units) == (0, 1)
    monkeypatch.setattr(Rows, "how", "")
    list(made), list(smooth)
    assert torch.equal(_weights(made), _weights(smooth)) and made.books.units == 6


def _drift(monkeypatch: pytest.MonkeyPatch, private: PerExampleModule) -> None:
    """Sums that are not bit-stable, as on a GPU."""
    exact = private.sums

    def sums(*batch: Tensor) -> Any:
        result, found = exact(*batch)
        return result, [f * (1 + 1e-6) + 1e-6 for f in found]

    monkeypatch.setattr(private, "sums", sums)


def _no_room(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def _let_go(folder: Path) -> None:
    """A process that is killed lets go of its locks; here the half-made engine must be collected for that."""
    import gc

    gc.collect()
    assert folder.exists()


DIGITS = """
import sys, torch
torch.set_num_threads(1)
from fxperex import training
from fxperex.data import load
job = training.Job(folder=sys.argv[1], noise_multiplier=1.0, epochs=4, batch=128)
private, engine = training.prepare(job, load("digits"))
print("ready", flush=True)
for _ in engine: pass
print(engine._secret.key("x").hex()[:8], engine.books.units, engine.books.extra, repr(engine.epsilon()),
      __import__("hashlib").sha256(b"".join(p.detach().numpy().tobytes() for p in private.parameters.values())).hexdigest())
"""


def _digits(folder: Path, kill_at: str = "") -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"FXPEREX_KILL_AT": kill_at} if kill_at else {})
    return subprocess.Popen([sys.executable, "-c", DIGITS, str(folder)], stdout=subprocess.PIPE, text=True, env=env)


def _told(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return out.splitlines()[-1]


TINY = """
import sys, torch
from torch import nn
import fxperex
from fxperex.privacy import PrivacyEngine
x, y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3
torch.manual_seed(0)
private = fxperex.transform(nn.Linear(6, 3), (x[:4], y[:4]), nn.functional.cross_entropy, clip=0.5, backend="eager")
with PrivacyEngine(private, torch.optim.SGD(private.parameters.values(), lr=1.0), (x, y), expected_batch=10, epochs=1.5,
                   delta=1e-3, noise_multiplier=1.3, seed=4, folder=sys.argv[1], checkpoint_every=2) as engine:
    for _ in engine: pass
print(engine.books.units, engine.books.extra, [p.tolist() for p in private.parameters.values()])
"""


def test_a_real_kill(tmp_path: Path, run: Make) -> None:
    told = []
    for order, status in (("sum on disk:4", -signal.SIGKILL), ("", 0)):
        done = subprocess.run([sys.executable, "-c", TINY, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, timeout=300,
                              env=os.environ | ({"FXPEREX_KILL_AT": order} if order else {}))
        assert done.returncode == status
        told.append(done.stdout)
    smooth = run(tmp_path / "smooth")
    list(smooth)
    assert told[-1].strip() == f"6 0 {[p.tolist() for p in smooth.private.parameters.values()]}"


@pytest.mark.nightly
@pytest.mark.parametrize("point", faults.POINTS)
def test_kill_9_at_every_point_of_the_digits(point: str, tmp_path: Path) -> None:
    killed = _digits(tmp_path / "run", f"{point}:{2 if point.startswith('checkpoint') else 13}")
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert _told(_digits(tmp_path / "run")) == _told(_digits(tmp_path / "smooth"))


@pytest.mark.nightly
def test_kill_9_at_50_random_times(tmp_path: Path) -> None:
    smooth = _told(_digits(tmp_path / "smooth"))
    waits = torch.rand(50, generator=torch.Generator().manual_seed(0))
    for i, wait in enumerate(waits.tolist()):
        process = _digits(tmp_path / str(i))
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(1.5 * wait)
        process.kill()
        process.communicate()
        assert _told(_digits(tmp_path / str(i))) == smooth
