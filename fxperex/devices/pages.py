"""Freed memory that stays with the process, so that a step on a CPU finds the memory of the one before.

glibc hands freed memory back to the system: tensors above 32 MiB at once, the rest where more than 64 MiB of it lie free at
the end of the heap. A step that keeps per-example gradients until its end takes so much in one piece that it has to fault every
page in anew, step by step, at a tenth of the memory's speed. An allocator such as jemalloc or tcmalloc, preloaded, does not.
"""

from __future__ import annotations

import ctypes
import platform

RETURNED = 2**26  # bytes of free memory from which glibc hands it back, by default
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # `mallopt(3)`
_asked: list[bool] = []  # what came of each call


def keep_pages() -> bool:
    """Makes the C library keep freed memory for the rest of the process; returns False where it is not glibc.

    For the whole process, and for good: what it has once taken it holds until it ends. The same as starting it with
    `MALLOC_TRIM_THRESHOLD_=-1 MALLOC_MMAP_MAX_=0`. Plans made from then on do not pay for memory that is touched anew, and store
    more. Never called by the library itself.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    _asked.append(bool(mallopt(TRIM_THRESHOLD, -1) and mallopt(MMAP_MAX, 0)))
    return _asked[-1]


def kept() -> bool:
    """True behind a `keep_pages` that took effect."""
    return any(_asked)
