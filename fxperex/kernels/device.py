"""The devices and operands that Triton kernels run on."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

OLDEST = (8, 0)  # compute capability: bfloat16, TF32 and asynchronous copies
# With fewer bytes, plain operations take no longer than the call of an op of this library.
SMALL = 2**16
# For ops whose kernels read any strides: Inductor need not copy their operands.
ANY_STRIDES = (torch.Tag.flexible_layout,)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def interpreting() -> bool:
    """Returns True if Triton's interpreter runs kernels on the CPU (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable(device: torch.device) -> str | None:
    """Returns None if the Triton kernels run on `device`, else the reason against it.

    If torch sees no CUDA device, the step is only being planned; the GPU is assumed to be new
    enough.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        return None
    if not _installed():
        return "Triton is not installed (pip install triton)"
    if interpreting():
        return None
    if device.type != "cuda":
        return f"the Triton kernels need a CUDA GPU; this step is on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return (f"the GPU is too old: compute capability {capability[0]}.{capability[1]}, the "
                f"Triton kernels need {OLDEST[0]}.{OLDEST[1]}")
    return None


def runs(*tensors: Tensor) -> bool:
    """Returns True if the kernels take these operands; else the ATen reference does."""
    floating = [t for t in tensors if t.is_floating_point()]
    small = all(_reach(t) < 2**31 for t in tensors)  # offsets inside one example are 32-bit
    known_dtypes = all(t.dtype in DTYPES for t in floating)
    return small and len(tensors[0]) > 0 and known_dtypes \
        and unavailable(tensors[0].device) is None


def on_its_device(launch: Callable[Concatenate[Tensor, P], R]) \
        -> Callable[Concatenate[Tensor, P], R]:
    """Decorator: while `launch` runs, the GPU of its first operand is the current one, on which
    Triton launches.
    """

    @functools.wraps(launch)
    def run(x: Tensor, *args: P.args, **options: P.kwargs) -> R:
        with torch.cuda.device_of(x):
            return launch(x, *args, **options)

    return run


def splits(programs: int, positions: int, device: torch.device, least: int = 256) -> int:
    """Returns the number of parts, of at least `least` positions, into which a product is cut to
    fill the GPU.
    """
    return max(1, min(-(-2 * _processors(device) // programs), positions // least))


def power(n: int, least: int, most: int) -> int:
    """Returns the power of two that holds `n`, between `least` and `most`."""
    return min(max(1 << (n - 1).bit_length(), least), most)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _reach(x: Tensor) -> int:
    """Returns the largest offset of an element inside its example."""
    return sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True) if n > 0)
