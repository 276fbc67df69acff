"""Freed memory that stays with the process, so that each step on a CPU reuses the memory of the one
before.

glibc returns freed memory to the system: tensors above 32 MiB at once, the rest if it lies at the
end of the heap. A step that holds per-example gradients until its end uses much memory in one
piece. If glibc returns it, every step faults each of its pages in again, at a tenth of the memory's
speed. A preloaded allocator such as jemalloc or tcmalloc does not return it.
"""

from __future__ import annotations

import ctypes
import math
import platform

import torch
from torch import Tensor

from fxperex.memory.workspace import FRESH

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # options of `mallopt(3)`
PIECE = 2**22  # bytes of one allocation: small enough that glibc takes it from the heap
TRIES = 64
# Tensors in use leave gaps: they spread over so many times their bytes of heap.
GAPS = 1.5
_outcomes: list[bool] = []  # of each call of `keep_pages`


def keep_pages() -> bool:
    """Makes the C library keep freed memory; returns False if it is not glibc.

    The process never returns memory to the system again, as if it had been started with
    `MALLOC_TRIM_THRESHOLD_=-1 MALLOC_MMAP_MAX_=0`. Plans made after it do not count the first touch
    of large tensors. The library itself never calls this.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    _outcomes.append(bool(mallopt(TRIM_THRESHOLD, -1) and mallopt(MMAP_MAX, 0)))
    return _outcomes[-1]


def pages_stay() -> bool:
    """True after a call of `keep_pages` that took effect."""
    return any(_outcomes)


def hold_heap(size: float) -> Tensor | None:
    """Returns a small tensor that lies after `size` bytes of heap. While it is alive, glibc cannot
    return that heap to the system. None if this is not glibc or memory is short.

    Nothing is written, so no page is used before a step needs it, and other code may use the same
    memory between steps. No option of the C library is set. It holds for the calling thread alone:
    other threads have heaps of their own.
    """
    if pages_stay() or platform.libc_ver()[0] != "glibc":
        return None
    try:
        # Once a tensor of this size was freed, glibc takes all smaller ones from the heap.
        _bytes(FRESH - 1)
        pieces = [_bytes(PIECE) for _ in range(math.ceil(GAPS * size / PIECE))]
        end, ceilings = max((p.data_ptr() for p in pieces), default=0), []
        for _ in range(TRIES):
            ceilings.append(_bytes(PIECE))  # the first of them may lie in older gaps
            if ceilings[-1].data_ptr() > end:
                return ceilings[-1]
    except RuntimeError:  # so much cannot be had at once; a step may still run with less
        pass
    return None


def _bytes(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")
