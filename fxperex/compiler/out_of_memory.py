"""Out of memory in a step: the error names the plan and what to set, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from fxperex.errors import MemoryLimitError
from fxperex.plan.byte_sizes import size
from fxperex.plan.plan import Plan

Args = ParamSpec("Args")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Forecast:
    """What a step was expected to take: `peak()` bytes for `rows` rows, most of it for `largest`.

    The peak is asked for only when memory ran out: the plan knows it only if memory was in
    question.
    """

    rows: int
    peak: Callable[[], float]
    largest: str = ""


def forecast(plan: Plan, peak: Callable[[], float]) -> Forecast:
    """Returns the Forecast of `plan`. `peak()`: bytes of the step graph at its worst node."""
    largest = max(plan.choices, key=lambda c: c.cost.held, default=None)
    text = ""
    if largest:
        text = f"{largest.site.name} ({largest.strategy}: {_size(largest.cost.held)})"
    return Forecast(plan.rows, lambda: plan.peak or peak(), text)


def guarded(call: Callable[Args, Result], expected: Forecast) -> Callable[Args, Result]:
    """Returns `call`. If it runs out of memory it raises MemoryLimitError, which names the expected
    peak and a budget.
    """

    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        try:
            return call(*args, **kwargs)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, MemoryLimitError) or not ended(error):
                raise
            device = next((x.device for x in args if isinstance(x, Tensor) and x.is_cuda), None)
            raise MemoryLimitError(message(expected, error, device)) from error

    return run


def message(expected: Forecast, error: BaseException, device: torch.device | None = None) -> str:
    """Returns what was expected, what the allocator said, what to set. device: the GPU it ran on,
    if any.
    """
    peak = expected.peak()
    largest = f", most of it for {expected.largest}" if expected.largest else ""
    return (f"the step ran out of memory: {str(error).splitlines()[0]} The plan for "
            f"{expected.rows} rows expected a peak of {_size(peak)}{largest}. Nothing was written "
            f"to the model. Transform again with memory=\"{_size(_budget(peak, device))}\", or "
            f"with physical_batch={max(expected.rows // 2, 1)} (any number of rows then runs in "
            "pieces)")


def _budget(expected: float, device: torch.device | None) -> float:
    """Three quarters of what was expected, within what `device` has left for this process."""
    if device is None:
        return 0.75 * expected
    room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return min(0.75 * expected, 0.9 * room)


def _size(count: float) -> str:
    """Returns `count` bytes as `memory=` takes them, at least 0.01MiB."""
    return size(max(count, 0.01 * 2**20), digits=2, gap="", smallest="MiB")


def ended(error: BaseException) -> bool:
    """True if `error` says that memory ran out."""
    # The CPU's allocator raises a plain RuntimeError.
    said = str(error)
    return (isinstance(error, torch.OutOfMemoryError | MemoryLimitError)
            or "can't allocate memory" in said or "not enough memory" in said)
