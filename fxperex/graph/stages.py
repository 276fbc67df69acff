"""The stages of `transform` as they run: seconds by `logging`, and one line on a terminal.

The line on stderr is overwritten by the next stage and cleared at the end. Elsewhere (files, pipes,
notebooks, and under FXPEREX_PROGRESS=0) nothing is printed. The logger is "fxperex", level INFO.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import sys
import time
from collections.abc import Iterator

LOGGER = logging.getLogger("fxperex")
HIDDEN = contextvars.ContextVar("HIDDEN", default=False)  # True while another line is drawn
CLEAR = "\r\x1b[K"  # to the begin of the line, and empty it


class Stages:
    """Times stages by name. `seconds`: those of each stage that has ended, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        asked = os.environ.get("FXPEREX_PROGRESS", "1") != "0"
        self._line = asked and not HIDDEN.get() and sys.stderr is not None and sys.stderr.isatty()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A block that is the stage `name`."""
        self._write(f"{CLEAR}fxperex: {name} ...")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self._write(CLEAR)
        LOGGER.info("%s: %.2f s", name, self.seconds[name])

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {taken:.2f}" for name, taken in self.seconds.items())
        return f"transform took {sum(self.seconds.values()):.2f} s: {parts}"

    def _write(self, text: str) -> None:
        if self._line:
            sys.stderr.write(text)
            sys.stderr.flush()
