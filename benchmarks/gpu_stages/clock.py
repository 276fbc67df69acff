"""Seconds of calls: waited for on both sides, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gpu_stages.setting import Setting

ROUNDS, WARM = 11, 5


def seconds(call: Callable[[], Any], setting: Setting) -> float:
    setting.wait()
    start = time.perf_counter()
    call()
    setting.wait()
    return time.perf_counter() - start


def turns(calls: Mapping[str, Callable[[], Any]], setting: Setting) -> dict[str, list[float]]:
    """Returns {name: seconds of each round}; every round runs every call once, after rounds to warm
    up."""
    rounds, warm = (2, 1) if setting.tiny else (ROUNDS, WARM)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm + rounds):
        for name, call in calls.items():
            spent = seconds(call, setting)
            if i >= warm:
                times[name].append(spent)
    return times


def quartiles(times: list[float]) -> list[float]:
    """Returns [lower quartile, median, upper quartile]."""
    return statistics.quantiles(times, n=4)


def fastest(call: Callable[[], Any], setting: Setting, rounds: int = 5) -> float:
    call()
    return min(seconds(call, setting) for _ in range(rounds))


def peak(call: Callable[[], Any], setting: Setting) -> int | None:
    """Returns the peak bytes that torch held on the GPU during one call; None elsewhere."""
    if not setting.on_gpu:
        return None
    torch.cuda.reset_peak_memory_stats()
    seconds(call, setting)
    return torch.cuda.max_memory_allocated()
