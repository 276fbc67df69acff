"""Where Triton kernels run, and in which precision they multiply."""

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
# bytes below which plain operations take no longer than an operation of this library takes to call
SMALL = 2**16
ANY_STRIDES = (torch.Tag.flexible_layout,
               )  # of operations whose kernels read any: Inductor need not copy for them
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def interpreting() -> bool:
    """Returns True where Triton's interpreter runs kernels on the CPU (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable(device: torch.device) -> str | None:
    """Returns None where the Triton kernels run on `device`, else the reason why not.

    A CUDA device where torch finds none is one that a step is only planned for: it is taken to be
    new enough.
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
    """Returns True where the kernels take these operands; elsewhere the ATen reference does."""
    floating = [t for t in tensors if t.is_floating_point()]
    small = all(_reach(t) < 2**31 for t in tensors)  # offsets inside one example are 32-bit
    return small and len(tensors[0]) > 0 and all(
        t.dtype in DTYPES for t in floating) and unavailable(tensors[0].device) is None


def on_its_device(
        launch: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Decorator: `launch` runs with the GPU of its first operand as the current one, for Triton
    launches on that.
    """

    @functools.wraps(launch)
    def run(x: Tensor, *args: P.args, **options: P.kwargs) -> R:
        with torch.cuda.device_of(x):
            return launch(x, *args, **options)

    return run


def splits(programs: int, positions: int, device: torch.device, least: int = 256) -> int:
    """Returns into how many parts of at least `least` positions a product is cut, so that the GPU
    is full.
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
    """Largest offset of an element from the first of its example."""
    return sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True) if n > 0)
