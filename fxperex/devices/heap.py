"""Freed memory that stays with the process, so that a step on a CPU finds the memory of the one
before.

glibc hands freed memory back to the system: tensors above 32 MiB at once, the rest where it lies at
the end of the heap. A step that keeps per-example gradients until its end takes so much in one
piece that it has to fault every page in anew, step by step, at a tenth of the memory's speed. An
allocator such as jemalloc or tcmalloc, preloaded, does not.
"""

from __future__ import annotations

import ctypes
import math
import platform

import torch
from torch import Tensor

from fxperex.memory.workspace import FRESH

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # `mallopt(3)`
PIECE = 2**22  # bytes; reserved in pieces that glibc takes from the heap
TRIES = 64
# heap that so many bytes in use at once spread over; what is not reached is never touched
GAPS = 1.5
_asked: list[bool] = []  # what came of each call


def keep_pages() -> bool:
    """Makes the C library keep freed memory for the rest of the process; returns False where it is
    not glibc.

    For the whole process, and for good: what it has once taken it holds until it ends. The same as
    starting it with `MALLOC_TRIM_THRESHOLD_=-1 MALLOC_MMAP_MAX_=0`. Plans made from then on do not
    pay for large tensors that are touched anew. Never called by the library itself.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    _asked.append(bool(mallopt(TRIM_THRESHOLD, -1) and mallopt(MMAP_MAX, 0)))
    return _asked[-1]


def kept() -> bool:
    """True behind a `keep_pages` that took effect."""
    return any(_asked)


def reserve(size: float) -> Tensor | None:
    """Returns a lid: while it lives, heap for so many bytes in use at once stays when it is free;
    None where it does not.

    glibc hands back what is free at the end of its heap; what lies in front of the lid is not
    there. Nothing is written, so no page is taken before a step uses it, and any other code may use
    the same memory between steps. No option of the C library is set. For the thread that calls:
    others have heaps of their own.
    """
    if kept() or platform.libc_ver()[0] != "glibc":
        return None
    try:
        _bytes(
            FRESH - 1
        )  # freed at once: as behind any tensor so large, glibc takes smaller ones from the heap
        pieces = [_bytes(PIECE) for _ in range(math.ceil(GAPS * size / PIECE))]
        end, lids = max((p.data_ptr() for p in pieces), default=0), []
        for _ in range(TRIES):
            lids.append(_bytes(PIECE))  # the first ones may lie in older gaps
            if lids[-1].data_ptr() > end:
                return lids[-1]
    except RuntimeError:  # so much is not to be had at once; a step may still do with less
        pass
    return None


def _bytes(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")
