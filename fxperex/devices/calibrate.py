"""Measures a Profile: every kernel class at its shapes, in float32; some in other dtypes too."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fxperex.devices.grids import LARGE
from fxperex.devices.kernel_classes import KERNELS, Kernel, Shape
from fxperex.devices.profile import Profile
from fxperex.devices.profile_files import device_name

BUDGET = 110.0  # seconds; what is not measured by then is interpolated
ENOUGH = 0.01  # seconds spent on one shape
EVICT = 2**24  # bytes that empty the caches nearest to the cores
STRIDES = (137, 139)  # primes; one of them does not divide a grid's number of shapes
Report = Callable[[int, int, str], None]


def calibrate(device: torch.device, report: Report | None = None,
              budget: float = BUDGET) -> Profile:
    """Returns a Profile measured on `device` in about `budget` seconds. Draws no random numbers.

    `report(done, total, kernel)` is called before every measurement.
    """
    tasks = measurements()
    samples: dict[str, dict[str, list[tuple[Shape, float]]]] = {}
    start = time.perf_counter()
    timer = Timer(device, cold=True)
    with torch.no_grad():
        for done, (name, kernel, dtype, shape) in enumerate(tasks):
            rows = samples.setdefault(name, {}).setdefault(str(dtype).removeprefix("torch."), [])
            if report is not None:
                report(done, len(tasks), name)
            # Every kernel gets a sample in each dtype, even after the time is spent.
            if not rows or time.perf_counter() - start < budget:
                seconds = timer(kernel.make(shape, dtype, device))
                rows.append((shape, kernel.amount(shape) / seconds))
    if report is not None:
        report(len(tasks), len(tasks), "done")
    finished = {kernel: {dtype: tuple(rows) for dtype, rows in by.items()}
                for kernel, by in samples.items()}
    return Profile(device_name(device), torch.__version__, finished)


def measurements() -> list[tuple[str, Kernel, torch.dtype, Shape]]:
    """Returns every measurement, in an order that visits all kernels evenly.

    So a budget that runs out leaves gaps in every kernel, and no kernel without samples.
    """
    tasks: list[tuple[float, str, Kernel, torch.dtype, Shape]] = []
    for name, kernel in KERNELS.items():
        other_dtypes = [(dtype, _sparse(kernel)) for dtype in kernel.dtypes]
        for dtype, shapes in [(torch.float32, kernel.shapes), *other_dtypes]:
            # A stride that does not divide the number of shapes takes every shape once, and shapes
            # far apart one after the other.
            stride = next(p for p in STRIDES if len(shapes) % p)
            order = [shapes[(i * stride) % len(shapes)] for i in range(len(shapes))]
            tasks += [(i / len(order), name, kernel, dtype, s) for i, s in enumerate(order)]
    return [item[1:] for item in sorted(tasks, key=lambda item: item[0])]


def _sparse(kernel: Kernel) -> tuple[Shape, ...]:
    """Returns the shapes at which other dtypes are measured: few and small, as a dtype can be many
    times slower than float32.
    """
    return tuple(s for s in kernel.shapes[2::9] if kernel.amount(s) <= LARGE)


class Timer:
    """Times calls on one device: the fastest of several runs, since other programs only add time.

    cold: the operands are out of the caches, as in a step, in which those of all other layers come
    between. This slows even a call of next to no work, as the library's own code is evicted too;
    that much is subtracted.
    """

    def __init__(self, device: torch.device, *, cold: bool = False) -> None:
        self.device, self.scrub, self.lag, self.floor = device, None, 0.0, 1e-9
        if cold:
            small = torch.ones(8, device=device)
            hot = self(lambda: small + 1)
            self.scrub = torch.ones(EVICT // 4, device=device)
            self.lag, self.floor = self(lambda: small + 1) - hot, hot

    def __call__(self, call: Callable[[], object], enough: float = ENOUGH, runs: int = 3) -> float:
        """Returns seconds. enough: seconds to spend; runs: at least so many, 2 of a slow call."""
        call()
        best, spent, count = float("inf"), 0.0, 0
        while count < (2 if best > enough else runs) or (spent < enough and count < 50):
            if self.scrub is not None:
                self.scrub.add_(1)
            self._wait()
            start = time.perf_counter()
            call()
            self._wait()
            took = time.perf_counter() - start
            best, spent, count = min(best, took), spent + took, count + 1
        return max(best - self.lag, self.floor)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
