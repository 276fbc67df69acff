"""SIGTERM and Ctrl-C during a run: raised after the current step, and not inside it.

A second one is raised at once. Only the main thread may set signal handlers; in other threads
signals are as usual.
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
    """The signal that came; 0 if none did."""

    signal: int = 0


@contextlib.contextmanager
def held(holding: bool) -> Iterator[Waiting]:
    """Yields the Waiting to check between steps. If a signal came, raises KeyboardInterrupt or
    SystemExit at the end. Does nothing unless `holding`.
    """
    waiting = Waiting()
    if not holding or threading.current_thread() is not threading.main_thread():
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
        # The loop was left while a signal was waiting: it counts as one that comes now.
        if broken_off and waiting.signal:
            signal.raise_signal(waiting.signal)
    if waiting.signal:
        _raise(waiting.signal)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
