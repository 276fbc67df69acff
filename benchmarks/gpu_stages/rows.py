"""One part's rows as JSON, written before and after each: what a crash or a time limit cuts off is
known by name."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A row is "ended" or one of these; "begun" is what a process that was cut off leaves.
ENDED, WRONG, FAILED, ABSENT, BEGUN = "ended", "wrong", "failed", "not there", "begun"
BROKEN = ("CUDA error", "AcceleratorError", "illegal memory access", "unspecified launch failure")


class AbsentError(Exception):
    """What a row needs is not on this machine: no failure."""


class Rows:
    """Rows by name in the file `path`, which begins with `facts`; rows that it has already are not
    run again."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.rows: dict[str, dict[str, Any]] = (
            json.loads(path.read_text())["rows"] if path.exists() else {}
        )

    def run(self, name: str, call: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Runs `call` and keeps the values it returns, with its seconds; `values["wrong"]` lists
        what must not be.

        What it raises is written down. Ends the process (code 3) where the device is broken:
        another one goes on.
        """
        if name in self.rows:
            return
        print(f"  {name}", file=sys.stderr, flush=True)
        self._write(name, {"state": BEGUN})
        start = time.perf_counter()
        outcome = _guarded(call, arguments)
        row = self.rows[name] | outcome  # what is known of it stays, whatever ended it
        row["seconds"] = round(time.perf_counter() - start, 3)
        self._write(name, row)
        if any(sign in row.get("error", "") for sign in BROKEN):
            sys.exit(3)

    def update(self, name: str, values: dict[str, Any]) -> None:
        """Writes down what is known so far of a row at work."""
        self._write(name, {"state": BEGUN} | values)

    def _write(self, name: str, row: dict[str, Any]) -> None:
        self.rows[name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.facts | {"rows": self.rows}, indent=1) + "\n")
        temporary.replace(self.path)


def _guarded(call: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    try:
        values = call(*arguments)
        return {"state": WRONG if values.get("wrong") else ENDED} | values
    except (AbsentError, ImportError) as error:
        return {"state": ABSENT, "why": str(error)}
    except Exception as error:  # whatever it is, the other rows go on
        lines = traceback.format_exc().splitlines()
        return {
            "state": FAILED,
            "error": f"{type(error).__name__}: {str(error)[:500]}",
            "trace": lines[-12:],
        }
