"""The shapes that a calibration measures, chosen among those that layers have. Rates between them
are interpolated (`interpolate.py`).

There are complete grids up to LIMIT, some larger shapes, and some of many positions and few
channels. `Kernel` leaves out shapes whose tensors would be new memory at every call.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

Shape = tuple[int, ...]
LIMIT = 6e8  # flop, or bytes, of the largest call of a complete grid
LARGE = 2.5e9  # flop of the largest call of a grid of large shapes
# Positions up to which all kinds of shapes are measured; with more, only shapes of few channels.
DEEP = 2304


def float32_bytes(s: Shape) -> float:
    return 4.0 * math.prod(s)


def grid(*axes: Iterable[int], amount: Callable[[Shape], float] = math.prod,
         limit: float = LIMIT) -> tuple[Shape, ...]:
    """Returns all shapes with these sizes whose amount is at most `limit`."""
    return tuple(s for s in itertools.product(*axes) if amount(s) <= limit)


def large(*axes: Iterable[int]) -> tuple[Shape, ...]:
    """Returns the shapes of a grid between LIMIT and LARGE flop."""
    return tuple(s for s in grid(*axes, amount=flop, limit=LARGE) if flop(s) > LIMIT)


def flop(s: Shape) -> float:
    return 2.0 * math.prod(s)


def gram_flop(s: Shape) -> float:
    return 2.0 * s[0] * s[1] ** 2 * s[2]


# A few calls of 5 to 45 Gflop, which wide layers make: rates fall again once operands and result no
# longer fit a cache.
WIDE_EACH = ((4, 256, 512, 484, 9), (2, 512, 512, 484, 9))
WIDE_CONVS = ((1, 400, 1600, 484, 9), (1, 512, 512, 1024, 9), (4, 256, 864, 484, 9),
              (8, 128, 512, 484, 9), (8, 512, 512, 256, 9), (8, 400, 1600, 484, 9))
DEEP_CONVS = grid((1, 8), (3, 25), (25,), (16384, 65536), (9, 25), amount=flop)
CONVS = (*grid((1, 8, 32), (3, 16, 64, 256), (16, 64, 256), (4, 49, 256, DEEP),
               (1, 9, 25), amount=flop), *large((1, 8), (64, 256, 512), (128, 512, 1024),
                                                (16, 256, DEEP), (1, 9)), *DEEP_CONVS, *WIDE_CONVS)
EACH = (
    *grid((8, 32), (64, 256), (16, 256), (1, ),
          (1, ), amount=flop),  # what squeezes and excites: one position
    *grid((8, 32), (3, 16, 64, 256), (16, 64, 256), (4, 49, 256, DEEP), (1, 9, 25), amount=flop),
    *large((4, 16), (128, 512), (128, 512), (16, 256, DEEP), (1, 9)),
    *WIDE_EACH)
# Channels that fill whole blocks, and channels that do not: a CPU's grouped convolution takes other
# ways (`workspace.partial`).
BLOCKED = tuple(s for s in EACH if s[1] >= 16)
PARTIAL = (*grid((8, 32), (25, 200), (25, 200), (1, ), (1, ), amount=flop), *grid(
    (8, 32), (3, 25, 75), (10, 25, 100), (49, 256, DEEP), (1, 9, 25), amount=flop), *large(
        (4, 16), (75, 150), (100, 390), (256, DEEP), (9, 25)), *DEEP_CONVS, (4, 264, 858, 484, 9))
MM = (*grid((10, 64, 256, 1024), (8, 64, 512, 4096), (10, 64, 256, 1024), amount=flop),
      *large((512, 2048), (64, 512), (1024, 4096)))
BMM = (*grid((4, 32), (16, 64, 256, 1024), (1, 4, 16, 64, 512), (16, 64, 256, 1024), amount=flop),
       *large((4, 16), (384, 1024), (64, 256), (384, 1024)))
BMM_PATCHES = (*grid(
    (8, 32), (16, 64, 256), (4, 49, 256, DEEP), (27, 144, 576, 2304), amount=flop), *large(
        (4, 16), (128, 512), (49, 256, DEEP), (576, 2304)), *grid(
            (8, ), (25, ), (16384, 65536),
            (27, 225), amount=flop), (4, 640, 256, 3136), (1, 1600, 484, 3600), (2, 864, 484, 2304),
               (4, 512, 484, 2304), (1, 1024, 1024, 4608), (4, 256, 1024, 2304))
BMM_COLUMNS = tuple(s for s in BMM_PATCHES if s[0] in (8, 16) and s[3] <= DEEP)
GRAM = (*grid((8, 32), (1, 4, 16, 49, 196, 784), (16, 64, 256, 1024, 4096), amount=gram_flop),
        (8, 484, 1600), (2, 1024, 64), (2, 1024, 512), *grid(
            (512, 8192), (4, 16, 49),
            (1, 9), amount=gram_flop))  # of every channel of a depthwise convolution
DEPTHWISE = grid((8, 16, 32), (16, 64, 192, 768), (1, 4, 16, 49, 196, 784), (9, 25, 49),
                 amount=flop)
SEEN = tuple(s for s in DEPTHWISE
             if s[3] <= (2 * math.sqrt(s[2]) - 1)**2)  # taps that do not all see padding alone
UNFOLD = (*grid((8, 32), (3, 16, 64, 256), (4, 49, 256, DEEP), (9, 25), amount=float32_bytes),
          (8, 128, 256, 25), (8, 156, 256, 25), (8, 3, 16384, 9), (1, 25, 16384, 9))
SCATTERED = grid((64, 256, 1024, 4096), (16, 64, 192, 768), amount=float32_bytes)
STORED = grid((4, 8, 32), (16, 256, 1024, 4608, 16384, 65536, 262144, 1048576),
              amount=float32_bytes)
