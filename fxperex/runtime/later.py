"""When a step that began eagerly is compiled: if that may pay, and once much was spent on eager
steps.

A step is compiled by another process meanwhile (`compiler.ahead`). What that one finds the fastest
is compiled here from the cache on disk, compared with the eager graph, and only then taken, at the
beginning of a step. Nothing here raises: what fails is a BackendWarning, and the step stays eager.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxperex.compiler import Ahead, Check, Step, backend_cache, may_pay
from fxperex.devices import profile
from fxperex.errors import BackendWarning

# Seconds of eager steps before a compiler is started. Compiling costs about as much: who stops
# earlier has lost nothing, who goes on loses at most as much again.
PATIENCE = 20.0
Make = Callable[[str], tuple[Step, str]]  # backend -> the step, compared with the eager one


class Later:
    """The choice of a backend that is still to be made. `check`: what steps are compared with."""

    def __init__(self, check: Check, inputs: list[Tensor], fixed: Sequence[bool],
                 make: Make) -> None:
        self.check, self._make = check, make
        self._inputs, self._fixed, self._device = inputs, fixed, inputs[0].device
        self._spent, self._lock = 0.0, threading.Lock()
        self._ahead: Ahead | None = None
        self._remembered = backend_cache.recall(check.graph, inputs)
        self._open = allowed() and self._remembered != "eager" and (
            self._remembered is not None or may_pay(check.graph, profile(self._device)))
        if not self._open:
            self._inputs = []

    def timed(self, step: Step, inputs: Sequence[Tensor]) -> Sequence[Any]:
        """Returns the outputs of `step`, and counts its seconds."""
        start = time.perf_counter()
        outputs = step(*inputs)
        self._spent += time.perf_counter() - start
        return outputs

    def due(self) -> bool:
        """Returns True once the other process found that a compiled step wins; starts it in its
        time.
        """
        if not self._open or self._spent < PATIENCE or not self._lock.acquire(blocking=False):
            return False
        try:
            # The same bits in every run: a switch at some time would not give those.
            if torch.are_deterministic_algorithms_enabled():
                return False
            return self._answered()
        except Exception as error:  # no failure to compile may end a run
            self._open = False
            warnings.warn(BackendWarning(f"the step stays eager: {type(error).__name__}: {error}"),
                          stacklevel=6)
            return False
        finally:
            self._lock.release()

    def _answered(self) -> bool:
        if self._ahead is None:
            self._ahead = Ahead(self.check.graph, self._inputs, self._fixed)
            return False
        backend = self._ahead.backend
        if backend is not None:
            self._open = False
            backend_cache.remember(self.check.graph, self._inputs, backend)
        return backend not in (None, "eager")

    def settled(self) -> tuple[Step, str]:
        """Returns the step by the fastest backend, now: as remembered, or compiled and timed."""
        if self._ahead is not None:
            self._ahead.stop()
        try:
            with torch.random.fork_rng(devices=[]):
                return self._make("auto")
        except Exception as error:  # out of memory, for instance, which the eager step was not
            warnings.warn(BackendWarning(f"the step stays eager: {type(error).__name__}: {error}"),
                          stacklevel=5)
            return self._make("eager")


def allowed() -> bool:
    """False if $FXPEREX_BACKGROUND is 0: then a step is compiled on request alone."""
    return os.environ.get("FXPEREX_BACKGROUND", "1") != "0"
