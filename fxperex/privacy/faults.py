"""The named points of a step at which the tests kill the process: power cuts on order.

`FXPEREX_KILL_AT=point:n` ends the process with SIGKILL the n-th time it comes to `point`; unset, nothing happens.
"""

from __future__ import annotations

import os
import signal

POINTS = ("begin: before the ledger", "begin: ledger written, not on disk", "begin: on disk", "data read", "sum known",
          "sum on disk", "noise drawn", "parameters updated", "commit: written", "checkpoint: tensors written",
          "checkpoint: before the rename", "checkpoint: renamed, not in the ledger")

_seen: dict[str, int] = {}


def reached(point: str) -> None:
    """Kills the process if that is what was ordered for this point."""
    order = os.environ.get("FXPEREX_KILL_AT")
    if order is None:
        return
    _seen[point] = _seen.get(point, 0) + 1
    if order == f"{point}:{_seen[point]}":
        os.kill(os.getpid(), signal.SIGKILL)
