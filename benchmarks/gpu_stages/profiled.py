"""What torch's profiler saw of a call: kernels by name, launches, waits of the host, and how long
the GPU did nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from gpu_stages.setting import Setting

LAUNCHES = (
    "cudaLaunchKernel",
    "cuLaunchKernel",
    "cudaGraphLaunch",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize",
         "aten::_local_scalar_dense")


def profile(call: Callable[[], Any], setting: Setting) -> list[Any]:
    """Returns the profiler's events of one call."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    with torch_profile(activities=activities) as recorded:
        call()
        setting.wait()
    return list(recorded.events() or [])


def on_device(events: list[Any]) -> list[Any]:
    return [e for e in events if e.device_type == DeviceType.CUDA]


def kernels(events: list[Any], count: int) -> list[dict[str, Any]]:
    """Returns the `count` costliest kernels (on a CPU: operations): name, count, microseconds in
    all."""
    spent: dict[str, list[float]] = defaultdict(list)
    for event in on_device(events) or [
        e for e in events if e.name.startswith(("aten::", "fxperex::"))
    ]:
        spent[event.name].append(event.time_range.elapsed_us())
    rows = [
        {"name": name[:160], "count": len(times), "us": round(sum(times), 1)}
        for name, times in spent.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["us"])))[:count]


def gaps(events: list[Any]) -> dict[str, Any]:
    """Returns launches and waits of the host, and microseconds: of the total, and of it with
    nothing on the GPU."""
    calls = {kind: sum(e.name.startswith(names) for e in events if e.device_type == DeviceType.CPU)
             for kind, names in (("launches", LAUNCHES), ("waits", WAITS))}
    spans = sorted((e.time_range.start, e.time_range.end) for e in on_device(events))
    if not spans:
        return calls | {"idle_share": None}
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    total = until - spans[0][0]
    return calls | {"us": total, "idle_share": 1 - busy / total if total else None}
