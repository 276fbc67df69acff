"""Measures a Profile: every kernel class at every shape, in float32 and, for products, other dtypes
too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fxperex.devices.grids import LARGE
from fxperex.devices.kernel_classes import KERNELS, Kernel, Shape
from fxperex.devices.profile import Profile
from fxperex.devices.profile_files import device_name

BUDGET = 110.0  # seconds; what is left unmeasured by then is said, and interpolated
ENOUGH = 0.01  # seconds spent on one shape
EVICT = 2**24  # bytes that empty the caches nearest to the cores
STRIDES = (137, 139)  # primes; one of them does not divide a grid's number of shapes
Report = Callable[[int, int, str], None]


def calibrate(device: torch.device, report: Report | None = None,
              budget: float = BUDGET) -> Profile:
    """Returns a Profile measured on `device` now, in under two minutes. Random state is left as it
    was.

    `report(done, total, what)` is called before every measurement.
    """
    todo = _todo()
    samples: dict[str, dict[str, list[tuple[Shape, float]]]] = {}
    start = time.perf_counter()
    timer = Timer(device, cold=True)
    with torch.no_grad():
        for done, (name, kernel, dtype, shape) in enumerate(todo):
            rows = samples.setdefault(name, {}).setdefault(str(dtype).removeprefix("torch."), [])
            if report is not None:
                report(done, len(todo), name)
            # Every kernel has one sample at least; the rest is left out once the time is spent.
            if not rows or time.perf_counter() - start < budget:
                rows.append(
                    (shape, kernel.amount(shape) / timer(kernel.make(shape, dtype, device))))
    if report is not None:
        report(len(todo), len(todo), "done")
    return Profile(device_name(device), torch.__version__,
                   {k: {d: tuple(r)
                        for d, r in v.items()}
                    for k, v in samples.items()})


def _todo() -> list[tuple[str, Kernel, torch.dtype, Shape]]:
    """Every measurement, spread evenly: a budget that runs out leaves gaps in every kernel, and
    none without samples.
    """
    tasks: list[tuple[float, str, Kernel, torch.dtype, Shape]] = []
    for name, kernel in KERNELS.items():
        for dtype, shapes in [(torch.float32, kernel.shapes),
                              *((d, _few(kernel)) for d in kernel.dtypes)]:
            # A stride prime to the grid's number of shapes takes every shape once, far-apart ones
            # first.
            stride = next(p for p in STRIDES if len(shapes) % p)
            order = [shapes[(i * stride) % len(shapes)] for i in range(len(shapes))]
            tasks += [(i / len(order), name, kernel, dtype, s) for i, s in enumerate(order)]
    return [item[1:] for item in sorted(tasks, key=lambda item: item[0])]


def _few(kernel: Kernel) -> tuple[Shape, ...]:
    """The shapes at which other dtypes are measured, which can be many times as slow: none of the
    widest.
    """
    return tuple(s for s in kernel.shapes[2::9] if kernel.amount(s) <= LARGE)


class Timer:
    """Least seconds of a call on one device: what other programs take from it only ever adds.

    `cold`: with its operands out of the caches, as in a step, where all other layers' come between.
    What that takes from a call of next to no work (the library's own code is evicted too) is taken
    off again.
    """

    def __init__(self, device: torch.device, *, cold: bool = False) -> None:
        self.device, self.scrub, self.lag, self.least = device, None, 0.0, 1e-9
        if cold:
            small = torch.ones(8, device=device)
            hot = self(lambda: small + 1)
            self.scrub = torch.ones(EVICT // 4, device=device)
            self.lag, self.least = self(lambda: small + 1) - hot, hot

    def __call__(self, call: Callable[[], object], enough: float = ENOUGH, least: int = 3) -> float:
        call()
        best, spent, count = float("inf"), 0.0, 0
        while count < (2 if best > enough else least) or (spent < enough and count < 50):
            if self.scrub is not None:
                self.scrub.add_(1)
            self._wait()
            start = time.perf_counter()
            call()
            self._wait()
            took = time.perf_counter() - start
            best, spent, count = min(best, took), spent + took, count + 1
        return max(best - self.lag, self.least)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
