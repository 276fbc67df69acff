"""SIGTERM and Ctrl-C during a run: remembered until the step at hand is whole, then raised.

A second one is raised at once. Only the main thread may set signal handlers; elsewhere signals stay
as they are.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Waiting:
    """The signal that came, if one did."""

    signal: int = 0


@contextlib.contextmanager
def held(wanted: bool) -> Iterator[Waiting]:
    """Yields what to look at between steps; raises KeyboardInterrupt or SystemExit on leaving if a
    signal came.
    """
    waiting = Waiting()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield waiting
        return

    def note(number: int, frame: FrameType | None) -> None:
        if waiting.signal:
            _raise(number)
        waiting.signal = number

    before = [signal.signal(s, note) for s in SIGNALS]
    broken_off = False
    try:
        yield waiting
    except GeneratorExit:
        broken_off = True
        raise
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
        # the loop was left with the signal on hand: as if it came now
        if broken_off and waiting.signal:
            signal.raise_signal(waiting.signal)
    if waiting.signal:
        _raise(waiting.signal)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
