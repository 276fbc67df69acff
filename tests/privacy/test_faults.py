"""Full disks, read-only folders, readers that die, sums that differ: each with its error, and
nothing lost.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from crashes import forked
from torch import Tensor

from fxperex.errors import LedgerError, PrivacyError
from fxperex.privacy import PrivacyEngine
from fxperex.privacy.records import checkpoint
from fxperex.runtime.module import PerExampleModule

Make = Callable[..., PrivacyEngine]
EVERY = 2
X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3


@pytest.fixture
def run(engine: Make) -> Callable[..., PrivacyEngine]:
    def make(folder: Path, **change: Any) -> PrivacyEngine:
        return engine(folder=folder, checkpoint_every=EVERY, epochs=1.5, **change)

    return make


def _weights(made: PrivacyEngine) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in made.private.parameters.values()])


def test_a_sum_that_differs_is_drawn_afresh_and_paid_again(run: Make, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    again = _after_a_crash(run, tmp_path, monkeypatch, seed=None)
    assert again.steps_done == 2 and again.generation == 0
    list(again)
    # Step 2 had been released; it is done again with other rows and other noise, and is paid twice.
    assert (again.steps_done, again.generation, again.books.units, again.books.extra) == (6, 1, 7,
                                                                                          1)
    assert "extra after crashes" in str(
        again.guarantee()) and again.guarantee().facts["account"]["extra steps"] == 1


def test_extra_debits_end_a_budgeted_run_early(run: Make, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    again = _after_a_crash(run, tmp_path, monkeypatch, seed=None, noise_multiplier=None,
                           epsilon=3.0, account="rdp")
    list(again)
    assert again.steps_done == 5 and again.books.units == 6 and again.epsilon() <= 3.0


def _after_a_crash(run: Make, folder: Path, monkeypatch: pytest.MonkeyPatch,
                   **change: Any) -> PrivacyEngine:
    """A run that goes on from the checkpoint after 2 steps, one more having been released; its sums
    are not bit-stable.
    """
    first = run(folder, **change)
    for _ in range(3):
        first.step()
    first.close()
    again = run(folder, **change)
    exact = again.private.sums

    def sums(*batch: Tensor) -> Any:
        result, found = exact(*batch)
        return result, [f * (1 + 1e-6) + 1e-6 for f in found]

    monkeypatch.setattr(again.private, "sums", sums)
    return again


def test_resuming_a_finished_run_does_nothing(run: Make, tmp_path: Path) -> None:
    first = run(tmp_path)
    list(first)
    first.close()
    again = run(tmp_path)
    assert again.steps_done == 6 and not list(again) and torch.equal(_weights(first),
                                                                     _weights(again))


@contextmanager
def _size_limit(path: Path, room: int) -> Iterator[None]:
    """A real limit of the system: files may grow to `room` bytes above the size of `path`; then
    writing fails.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE,
                       ((path.stat().st_size if path.exists() else 0) + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _refusing(owner: Any, name: str, number: int) -> Any:
    """Patches `owner.name` to fail with the error `number` of the system."""
    return mock.patch.object(owner, name, side_effect=OSError(number, os.strerror(number)))


class Disk:
    """The ledger's file, whose method `name` fails where `fails(number of the call, argument)`."""

    def __init__(self, file: Any, name: str, fails: Callable[[int, Any], bool]) -> None:
        self._file, self._name, self._fails, self._count = file, name, fails, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._file, name)

        def call(argument: Any) -> Any:
            self._count += 1
            if self._fails(self._count, argument):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(argument)

        return call if name == self._name else real


def _disk(made: PrivacyEngine, name: str, fails: Callable[[int, Any], bool]) -> Any:
    ledger = made.books.ledger
    return mock.patch.object(ledger, "_file", Disk(ledger._file, name, fails))


@contextmanager
def _stuck(made: PrivacyEngine) -> Iterator[None]:
    """Neither synced nor cut back: a whole line stays that the ledger never agreed to."""
    with _disk(made, "truncate", lambda count, _: count > 1), _refusing(os, "fsync", errno.EIO):
        yield


FULL: dict[str, Callable[[PrivacyEngine, Path], Any]] = {
    "room for half a ledger line": lambda made, folder: _size_limit(folder / "ledger.jsonl", 40),
    "no room in the ledger": lambda made, folder: _size_limit(folder / "ledger.jsonl", 0),
    "ledger not synced": lambda made, folder: _refusing(os, "fsync", errno.ENOSPC),
    "ledger not cut back": lambda made, folder: _stuck(made),
    "checkpoint file": lambda made, folder: _refusing(checkpoint, "put", errno.ENOSPC),
    "checkpoint folder": lambda made, folder: _refusing(Path, "mkdir", errno.ENOSPC),
    "checkpoint rename": lambda made, folder: _refusing(Path, "rename", errno.ENOSPC),
    "checkpoint names": lambda made, folder: _refusing(checkpoint, "sync_folder", errno.EIO),
    "checkpoint record": lambda made, folder: _disk(made, "write", lambda _, line: b'"set"' in line
                                                    ),
}


@pytest.mark.parametrize("what", FULL)
def test_disk_full(what: str, run: Make, tmp_path: Path) -> None:
    made, smooth = run(tmp_path / "full"), run(tmp_path / "smooth")
    made.step()
    before = (tmp_path / "full" / "ledger.jsonl").read_bytes()
    act = made.checkpoint if "checkpoint" in what else made.step
    with FULL[what](made, tmp_path / "full"), pytest.raises(
            LedgerError, match=r"No space left|File too large|Input/output"):
        act()
    left = (tmp_path / "full" / "ledger.jsonl").read_bytes()
    assert made.steps_done == made.books.units == 1 and (left == before or "cut back" in what)
    act()
    list(made), list(smooth)
    assert torch.equal(_weights(made), _weights(smooth)) and made.books.units == 6
    made.close()
    again = run(tmp_path / "full")
    assert again.steps_done == 6 and torch.equal(_weights(again), _weights(smooth))


def test_disk_full_at_the_commit_is_a_step_taken(run: Make, tmp_path: Path) -> None:
    made, smooth = run(tmp_path / "full"), run(tmp_path / "smooth")
    with _disk(made, "write",
               lambda _, line: b'"commit"' in line), pytest.raises(LedgerError,
                                                                   match="No space left"):
        made.step()
    assert made.steps_done == made.books.units == 1
    list(made), list(smooth)
    assert torch.equal(_weights(made), _weights(smooth))


def test_a_folder_that_cannot_be_made(run: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be used"):
        run(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize(("owner", "name"), [(Path, "mkdir"), (checkpoint, "put"), (os, "link"),
                                             (Path, "open")])
def test_a_read_only_folder(owner: Any, name: str, number: int, run: Make, tmp_path: Path) -> None:
    with _refusing(owner, name,
                   number), pytest.raises(LedgerError,
                                          match=f"{os.strerror(number)}.*nothing was spent"):
        run(tmp_path / "run")
    assert len(list(run(tmp_path /
                        "run"))) == 6, "once it may be written, it is a folder like any other"


def test_a_folder_that_is_not_ours(run: Make, private: Callable[..., PerExampleModule],
                                   tmp_path: Path) -> None:
    """The system's own refusal; root, whom it refuses nothing, becomes nobody first."""
    tmp_path.chmod(0o500)
    step = private()  # a copy of this process may not run autograd

    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        with pytest.raises(LedgerError, match=r"Permission denied.*nothing was spent"):
            run(tmp_path / "run", step=step)

    assert forked(work) == 0


@pytest.mark.parametrize("name", ["ledger.jsonl", "secret"])
def test_a_run_that_may_no_longer_be_read(name: str, run: Make, tmp_path: Path) -> None:
    run(tmp_path).close()
    path = tmp_path / name
    path.rename(tmp_path / "aside")
    path.mkdir()
    with pytest.raises(LedgerError, match="Is a directory"):
        run(tmp_path)
    path.rmdir()
    (tmp_path / "aside").rename(path)
    with _refusing(Path, "read_bytes", errno.EIO), pytest.raises(LedgerError,
                                                                 match="Input/output error"):
        run(tmp_path)
    run(tmp_path)


def test_two_runs_on_one_folder(run: Make, private: Callable[..., PerExampleModule],
                                tmp_path: Path) -> None:
    first, step = run(tmp_path), private()

    def refused() -> None:
        with pytest.raises(LedgerError, match="in use by another process"):
            run(tmp_path, step=step)

    refused()
    assert forked(refused) == 0, "as in one process, so in two"
    list(first)
    first.close()
    assert run(tmp_path).steps_done == 6


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
def test_a_reader_that_raises_or_dies(how: str, workers: int, run: Make, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    made, smooth = run(tmp_path / "a", dataset=Rows(X, Y), workers=workers), run(tmp_path / "b")
    monkeypatch.setattr(Rows, "how", how)
    with pytest.raises(PrivacyError, match="could not be read"):
        made.step()
    assert (made.steps_done, made.books.units) == (0, 1)
    monkeypatch.setattr(Rows, "how", "")
    list(made), list(smooth)
    assert torch.equal(_weights(made), _weights(smooth)) and made.books.units == 6


def test_an_interrupted_append_leaves_no_line(run: Make, tmp_path: Path) -> None:
    """Ctrl-C while the disk syncs, outside the engine's own loop: the line is there, the ledger
    never agreed to it.
    """
    made, smooth = run(tmp_path / "a"), run(tmp_path / "b")
    for _ in range(2):
        with mock.patch.object(os, "fsync",
                               side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            made.step()
    list(made), list(smooth)
    made.close()
    again = run(tmp_path / "a")
    assert again.books.units == 6 and torch.equal(_weights(again), _weights(smooth))


def test_an_interrupt_on_entering_a_step_is_the_same_step_again(run: Make, tmp_path: Path) -> None:
    made, begin = run(tmp_path), PrivacyEngine.begin

    def interrupted(engine: PrivacyEngine, step: Any) -> None:
        begin(engine, step)
        raise KeyboardInterrupt

    with mock.patch.object(PrivacyEngine, "begin", interrupted), pytest.raises(KeyboardInterrupt):
        made.step()
    assert (made.steps_done, made.books.units) == (0, 1)
    assert len(list(made)) == 6 == made.books.units


def test_a_copy_of_the_process_may_not_go_on(run: Make, tmp_path: Path) -> None:
    for made in (run(tmp_path), run(tmp_path / "other")):
        def work(made: PrivacyEngine = made) -> None:
            with pytest.raises(LedgerError, match="copy"):
                made.step()

        assert forked(work) == 0
        assert len(list(made)) == 6
    with pytest.raises(LedgerError, match="in use by another process"):
        run(tmp_path)


def test_a_signal_is_not_lost_when_the_loop_is_broken_off(run: Make,
                                                          private: Callable[..., PerExampleModule],
                                                          tmp_path: Path) -> None:
    step = private()

    def work() -> None:
        for _ in run(tmp_path, step=step):
            os.kill(os.getpid(), signal.SIGTERM)
            break
        raise AssertionError("the signal was lost")

    assert forked(work) == -signal.SIGTERM
