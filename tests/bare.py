"""Run by a test in a process of its own: the library with torch alone, on a system that lacks what
Windows and macOS lack. Prints what each command does.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXTRAS = ("numpy", "scipy", "dp_accounting", "cryptography", "safetensors", "rich", "sklearn",
          "matplotlib", "torchvision", "transformers")
LACKING = ("fcntl", "resource", "pwd", "grp", "termios")
CALLS = ("fork", "register_at_fork", "fchmod", "sched_getaffinity", "uname", "getuid")


def small() -> Any:
    """Returns a model with its batch and loss, for commands."""
    from torch import nn, randn, zeros

    return nn.Linear(4, 3), (randn(2, 4), zeros(2).long()), nn.functional.cross_entropy


MODEL = f"{Path(__file__).stem}:small"
# What would measure for minutes or write into the user's cache only prints its help.
OPTIONS = {"explain": [MODEL], "compare": [MODEL, "--only", "vmap"], "draw": [MODEL, "--output"],
           "calibrate": ["--help"], "docs": ["--help"]}


class Hiding:
    """Finds what another finder does, but for modules of these names."""

    def __init__(self, finder: Any, names: Sequence[str]) -> None:
        self.finder, self.names = finder, names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.split(".")[0] in self.names else self.finder.find_spec(
            name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def hide(modules: Sequence[str], calls: Sequence[str]) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in modules]:
        del sys.modules[name]
    sys.meta_path[:] = [Hiding(finder, modules) for finder in sys.meta_path]
    for name in calls:
        if hasattr(os, name):
            delattr(os, name)


def without_extras(folder: Path) -> None:
    """Every command, with torch alone."""
    from fxperex.cli import commands, main

    for name in commands():
        out, err = io.StringIO(), io.StringIO()
        with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
              contextlib.suppress(SystemExit)):
            drawn = [str(folder / "plan.svg")] if name == "draw" else []
            main([name, *OPTIONS.get(name, []), *drawn])
        text = (err.getvalue() or out.getvalue()).strip().splitlines()
        print(f"{name}: {text[-1] if text else ''}")
    try:
        import fxperex.privacy  # noqa: F401
    except Exception as e:
        print(f"import: {type(e).__name__}: {e}")


def locked(folder: Path) -> None:
    """A ledger by the lock of Windows: one process at a time, records at their places."""
    held: set[str] = set()

    def locking(handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1) and os.lseek(handle, 0, os.SEEK_CUR) == 2**40
        if "ledger" in held:
            raise PermissionError(13, "Permission denied")
        held.add("ledger")

    windows = types.ModuleType("msvcrt")
    windows.LK_NBLCK, windows.locking = 2, locking  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = windows
    from fxperex.errors import LedgerError
    from fxperex.privacy.records.folder import Folder

    run = Folder(folder, None, False, None)
    run.ledger.append("run", facts={})
    try:
        Folder(folder, None, False, None)
    except LedgerError as e:
        print(e)
    run.ledger.close()
    held.clear()
    print("records", len(Folder(folder, None, False, None).ledger.records))


if __name__ == "__main__":
    if sys.argv[1] == "extras":
        hide(EXTRAS, ())
        without_extras(Path(sys.argv[2]))
    else:
        # torch asks for these when it is imported; only the library is to do without.
        import torch._inductor.utils  # noqa: F401

        hide(LACKING, CALLS)
        locked(Path(sys.argv[2]))
