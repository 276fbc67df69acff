"""Silence about export's own internals, while a program is captured; all is put back after.

What matters comes back as an exception. torch also logs tracebacks of its fake tensors, warns, and
prints the graph traced so far on stderr, hundreds of lines before the one that helps. What the
user's own forward prints, logs or warns is let through, but for warnings, which capture would
repeat at every one of its runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import torch

SPOKEN = {"torch.__trace"}  # writes files that were asked for
EXPORT = os.path.join(os.path.dirname(torch.__file__), "export", "")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it torch logs, warns and prints nothing; TORCH_LOGS, where it is set, goes before."""
    levels = {} if os.environ.get("TORCH_LOGS") else _levels()
    stream = sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in levels:
            logger.setLevel(logging.CRITICAL + 1)
        sys.stderr = _WithoutGraphs(stream)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stderr = stream
            for logger, level in levels.items():
                logger.setLevel(level)


def _levels() -> dict[logging.Logger, int]:
    """torch's loggers and their levels; those made later ask the one named torch."""
    logging.getLogger("torch")
    loggers = dict(logging.Logger.manager.loggerDict)
    return {
        logger: logger.level
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger) and (
            name == "torch" or name.startswith("torch.")) and name not in SPOKEN
    }


class _WithoutGraphs:
    """The stream it is given, but for what torch.export prints."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if sys._getframe(1).f_code.co_filename.startswith(EXPORT):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
