"""The digits, trained in a process of their own that gets a signal at a named point of a step, or
at any time.

The process is a fork of this one: torch is imported and the step is made once, and what the fork
does to them is its own. The points are places between two calls of the library, found by wrapping
the callee; nothing in the library knows of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fxperex
from fxperex.demo.data import load, standardise
from fxperex.demo.train import network
from fxperex.privacy import Noise, PrivacyEngine
from fxperex.privacy.gate import Gate
from fxperex.privacy.logical_step import LogicalStep
from fxperex.privacy.records import checkpoint
from fxperex.privacy.records.ledger import Ledger
from fxperex.privacy.records.spending import Books
from fxperex.runtime.module import PerExampleModule

BATCH, ROWS, EVERY, STEPS = 64, 32, 4, 10
TOLD = "told.json"


def digits() -> tuple[PerExampleModule, tuple[Tensor, Tensor]]:
    """Returns the private step of a small network and the training digits; two or more physical
    batches a step.
    """
    data = load("digits")
    torch.manual_seed(0)
    x, y = standardise(data.train[0]), data.train[1]
    private = fxperex.transform(network(data.shape, data.classes,
                                        width=4), (x[:2], y[:2]), nn.functional.cross_entropy,
                                clip=0.5, backend="eager", physical_batch=ROWS)
    return private, (x, y)


@dataclass(frozen=True)
class Point:
    """The call of `owner.name` for which `only` is true; the signal comes `when`: "before",
    "after", or "half" way.
    """

    owner: Any
    name: str
    when: str = "before"
    only: Callable[..., bool] = lambda *args, **kwargs: True


def _ledgers(handle: int) -> bool:
    return os.readlink(f"/proc/self/fd/{handle}").endswith(".jsonl")


def _commits(ledger: Ledger, kind: str, **_: Any) -> bool:
    return kind == "commit"


POINTS = {
    "before the debit": Point(Books, "begin"),
    "debit written, not on disk": Point(os, "fsync", only=_ledgers),
    "debit on disk, before data": Point(LogicalStep, "parts"),
    "during the sum": Point(PerExampleModule, "sums", "after"),
    "sum known, not recorded": Point(Books, "summed"),
    "sum recorded, before noise": Point(Noise, "release_parts"),
    "after noise": Point(Gate, "update"),
    "during the update": Point(import_module("torch.optim.adam"), "adam", "half"),
    "after the update": Point(Ledger, "append", only=_commits),
    "after the commit record": Point(Ledger, "append", "after", _commits),
    "during the checkpoint": Point(checkpoint, "put", "after"),
    "before the rename": Point(Path, "rename"),
    "after the rename": Point(Path, "rename", "after"),
    "checkpoint recorded": Point(checkpoint, "prune"),
    "between steps": Point(PrivacyEngine, "step"),
}
MAKING = {
    "secret written": Point(os, "link"),
    "secret in place": Point(os, "link", "after"),
    "run recorded": Point(Ledger, "append", "after"),
} | {
    name: POINTS[name]
    for name in ("during the checkpoint", "before the rename", "after the rename",
                 "checkpoint recorded")
}


@contextmanager
def armed(point: Point, ready: Callable[[], bool], number: int) -> Iterator[None]:
    """Sends this process the signal `number` at the first coming to `point` when `ready`."""
    original, sent = getattr(point.owner, point.name), [False]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        due = not sent[0] and ready() and point.only(*args, **kwargs)
        sent[0] = sent[0] or due
        if due and point.when == "half":
            original(*(x[len(x) // 2:] for x in args), **kwargs)
            args = tuple(x[:len(x) // 2] for x in args)
        if due and point.when != "after":
            os.kill(os.getpid(), number)
        result = original(*args, **kwargs)
        if due and point.when == "after":
            os.kill(os.getpid(), number)
        return result

    with mock.patch.object(point.owner, point.name, wrapped):
        yield


def train(private: PerExampleModule, data: Any, folder: Path, point: str = "",
          step: int | None = None, number: int = signal.SIGKILL, **change: Any) -> None:
    """Trains to the end, or to the signal: at `point` after `step` steps, or, None, while the
    engine is made.
    """
    held: list[PrivacyEngine] = []

    def ready() -> bool:
        return step is None or (bool(held) and held[0].steps_done >= step)

    order = armed((POINTS | MAKING)[point], ready, number) if point else nullcontext()
    settings = {
        "expected_batch": BATCH, "epochs": STEPS * BATCH / 1437, "delta": 1e-4,
        "noise_multiplier": 1.0, "folder": folder, "checkpoint_every": EVERY
    } | change
    with order, PrivacyEngine(private, torch.optim.Adam(private.parameters.values(), lr=1e-2), data,
                              **settings) as engine:
        held.append(engine)
        for _ in engine:
            pass
        weights = b"".join(p.detach().numpy().tobytes() for p in private.parameters.values())
        (folder / TOLD).write_text(
            json.dumps({
                "steps": engine.steps_done, "units": engine.books.units,
                "extra": engine.books.extra, "weights": hashlib.sha256(weights).hexdigest()
            }))


def forked(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Returns how a copy of this process that does `work` ended: its exit code, or minus the signal
    that ended it.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except SystemExit as e:
            code = int(e.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / TOLD).read_text())
    return found
