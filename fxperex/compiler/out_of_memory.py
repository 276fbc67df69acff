"""Out of memory in a step: said in terms of the plan, with nothing written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxperex.errors import MemoryLimitError
from fxperex.plan.byte_sizes import size
from fxperex.plan.plan import Plan


def guarded(step: Callable[..., Sequence[Any]], plan: Plan,
            peak: Callable[[], float]) -> Callable[..., Sequence[Any]]:
    """Returns `step`; where it runs out of memory it raises MemoryLimitError, which names the
    predicted peak and a budget.

    `peak()`: bytes of the step at its worst node, asked for only then; the plan knows them only
    where memory was in question.
    """

    def run(*args: Any) -> Sequence[Any]:
        try:
            return step(*args)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, MemoryLimitError) or not ended(error):
                raise
            device = next((x.device for x in args if isinstance(x, Tensor) and x.is_cuda), None)
            raise MemoryLimitError(told(plan, plan.peak or peak(), error, device)) from error

    return run


def told(plan: Plan, peak: float, error: BaseException, device: torch.device | None = None) -> str:
    """Returns the message: what the plan expected, what the allocator said, what to set. device:
    the GPU it ran on, if any.
    """
    largest = max(plan.choices, key=lambda c: c.cost.held, default=None)
    where = ""
    if largest:
        held = f"{largest.strategy}: {_size(largest.cost.held)}"
        where = f", most of it for {largest.site.name} ({held})"
    return (f"the step ran out of memory: {str(error).splitlines()[0]} The plan for {plan.rows} "
            f"rows expected a peak of {_size(peak)}{where}. Nothing was written to the model. "
            f"Transform again with memory=\"{_size(_budget(peak, device))}\", or with "
            f"physical_batch={max(plan.rows // 2, 1)} (any number of rows then runs in pieces)")


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
