"""FXPEREX_SHOW=1..4: what the pipeline makes, on stderr, as it makes it.

1: the plan. 2: and the captured graph. 3: and the step graph. 4: and the graph after each pass
between them. From 1 on, and under FXPEREX_VERIFY=1, the step graph is verified after every pass.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import fx

from fxperex.errors import ConfigError
from fxperex.graph.step_graph import readable

LEVELS = "0 to 4"


def level() -> int:
    """Returns the level that FXPEREX_SHOW asks for, 0 where it is not set. Raises ConfigError for
    another word.
    """
    setting = os.environ.get("FXPEREX_SHOW", "0") or "0"
    if setting not in {"0", "1", "2", "3", "4"}:
        raise ConfigError(f"FXPEREX_SHOW is a level from {LEVELS}; got {setting!r}")
    return int(setting)


def show(least: int, title: str, value: Any) -> None:
    """Prints `value`, a graph or anything that prints, under `title` if the level is at least
    `least`.
    """
    if level() >= least:
        text = readable(value.graph) if isinstance(value, fx.GraphModule) else str(value)
        print(f"\n=== {title}\n{text}", file=sys.stderr)
