"""Several ranks on one machine: processes with a gloo group of their own.

They are forks of a server that has imported torch and has run nothing: a rank costs a fraction of a
second, and autograd's threads, which no fork may inherit, were never started.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed

from fxperex.errors import FxperexError

SECONDS = 60  # a collective that waits longer is a failure, and no deadlock
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["warm"])


def _rank(work: Callable[..., Any], rank: int, world: int, folder: Path, number: int,
          args: tuple[Any, ...]) -> None:
    """What process `rank` does: joins the others, works, and writes what came of it."""
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / f"store{number}"), world)
    distributed.init_process_group("gloo", rank=rank, world_size=world, store=store,
                                   timeout=timedelta(seconds=SECONDS))
    torch.save(work(rank, *args), folder / f"result{number}-{rank}")
    distributed.destroy_process_group()


class Pool:
    """Runs work on any number of ranks, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._runs = folder, 0
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
            forkserver.ensure_running()

    def codes(self, work: Callable[..., Any], world: int, *args: Any) -> list[int | None]:
        """Returns how each rank ended: its exit code, or minus the signal that ended it."""
        self._runs += 1
        ranks = [SERVER.Process(target=_rank, args=(work, rank, world, self.folder, self._runs,
                                                    args)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        return [process.exitcode for process in ranks]

    def result(self, rank: int) -> Any:
        """Returns what `rank` returned in the newest run."""
        return torch.load(self.folder / f"result{self._runs}-{rank}", weights_only=False)

    def run(self, work: Callable[..., Any], world: int, *args: Any) -> list[Any]:
        """Returns what each rank returned for `work(rank, *args)`. Raises AssertionError if one
        failed.
        """
        assert self.codes(work, world, *args) == [0] * world
        return [self.result(rank) for rank in range(world)]


def raised(call: Any) -> str:
    """Returns the name and text of the library's error that `call` raises."""
    try:
        call()
    except FxperexError as e:
        return f"{type(e).__name__}: {e}"
    return "nothing"
