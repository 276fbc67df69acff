"""The kernel classes of the roofline: the sizes of each, the shapes to measure, and how to call it.

To price a new kernel, add a row to KERNELS. Until a device is calibrated again, its rate is that of
its nearest relative (`relative`), with an error of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from fxperex.devices import grids, kernel_calls
from fxperex.devices.grids import Shape, float32_bytes, flop, gram_flop
from fxperex.devices.kernel_calls import Make
from fxperex.memory.workspace import FRESH, blocked


@dataclass(frozen=True)
class Kernel:
    """A class of kernels that are priced alike.

    axes: the names of a shape's sizes. shapes: what a calibration measures.
    amount: `amount(shape)` is the work of one call, in `unit`. make: see `kernel_calls`.
    dtypes: measured in addition to float32.
    allocates: `allocates(shape)` are the elements of each tensor that a call allocates. One of
    FRESH bytes is untouched memory every time, and touching it can cost more than the kernel. So
    such shapes are not measured, and the touch is added to the prediction (`Profile.of`).
    """

    axes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    amount: Callable[[Shape], float]
    make: Make
    dtypes: tuple[torch.dtype, ...] = ()
    allocates: Callable[[Shape], tuple[float, ...]] = lambda shape: ()

    def __post_init__(self) -> None:
        measurable = tuple(
            s for s in self.shapes if 4 * max(self.allocates(s), default=0) < FRESH)
        object.__setattr__(self, "shapes", measurable)

    @property
    def unit(self) -> str:
        """Returns "flop" for products and convolutions, "call" for a launch, else "bytes"."""
        if self.axes == ONE:
            return "call"
        return "flop" if self.amount in (flop, gram_flop) else "bytes"


def relative(kernel: str, measured: Collection[str]) -> str:
    """Returns the kernel of `measured` whose rate stands for `kernel`'s.

    It has the same axes if possible, else as many sizes in the same unit, else the same unit.
    """
    own = KERNELS[kernel]
    candidates = [name for name in KERNELS if name in measured and name != kernel]
    same_unit = [name for name in candidates if KERNELS[name].unit == own.unit]
    same_axes = [name for name in same_unit if KERNELS[name].axes == own.axes]
    same_count = [name for name in same_unit if len(KERNELS[name].axes) == len(own.axes)]
    return [*same_axes, *same_count, *same_unit, *candidates][0]


def _product(*sizes: int) -> Callable[[Shape], tuple[float, ...]]:
    """`allocates` of one tensor, whose dimensions are the shape's sizes at these places."""
    return lambda shape: (float(math.prod(shape[i] for i in sizes)),)


def _gram(shape: Shape) -> tuple[float, ...]:
    return (2.0 * shape[0] * shape[1]**2,)


def _copied(shape: Shape) -> tuple[float, ...]:
    """A convolution's images, in blocks of channels."""
    n, c, p, t, _ = shape
    return n * t * blocked(c), n * t * blocked(p)


def _grouped(shape: Shape) -> tuple[float, ...]:
    """The same, and the weight gradients of all images."""
    n, c, p, _, taps = shape
    return (*_copied(shape), float(n * c * p * taps))


BOTH = (torch.bfloat16, torch.float64)
CONV = ("n", "inputs", "outputs", "positions", "taps")
PRODUCT = ("b", "p", "t", "d")
IMAGES = ("n", "channels", "positions", "taps")
ROWS = ("rows", "size")
ONE = ("one",)
_FORWARD = kernel_calls.convolution_forward
_TO_INPUT = kernel_calls.convolution_backward([True, False, False])
_TO_WEIGHT = kernel_calls.convolution_backward([False, True, False])
_POWERS = tuple((2**k,) for k in range(10, 28))
_RESULT = _product(0, 1, 3)
KERNELS: dict[str, Kernel] = {
    "mm": Kernel(("m", "k", "n"), grids.MM, flop, kernel_calls.mm, BOTH, _product(0, 2)),
    "bmm": Kernel(PRODUCT, grids.BMM, flop, kernel_calls.bmm, BOTH, _RESULT),
    "bmm_patches": Kernel(PRODUCT, grids.BMM_PATCHES, flop, kernel_calls.bmm_patches, BOTH,
                          _RESULT),
    "bmm_columns": Kernel(PRODUCT, grids.BMM_COLUMNS, flop, kernel_calls.bmm_columns, BOTH,
                          _RESULT),
    "stream": Kernel(PRODUCT, grids.BMM, flop, kernel_calls.stream),
    "gram": Kernel(("b", "t", "d"), grids.GRAM, gram_flop, kernel_calls.gram, allocates=_gram),
    "conv_forward": Kernel(CONV, grids.CONVS[::3], flop, _FORWARD, BOTH, _copied),
    "conv_input": Kernel(CONV, grids.CONVS[1::3], flop, _TO_INPUT, BOTH, _copied),
    "conv_weight": Kernel(CONV, grids.CONVS, flop, _TO_WEIGHT, BOTH, _copied),
    "conv_depthwise": Kernel(IMAGES, grids.SEEN, flop, kernel_calls.depthwise),
    "conv_grouped": Kernel(CONV, grids.EACH, flop, kernel_calls.grouped, BOTH, _grouped),
    "conv_grouped_partial": Kernel(CONV, grids.PARTIAL, flop, kernel_calls.grouped,
                                   allocates=_grouped),
    "conv_vmap": Kernel(CONV, grids.BLOCKED[::2], flop, kernel_calls.vmapped, allocates=_grouped),
    "conv_vmap_partial": Kernel(CONV, grids.PARTIAL, flop, kernel_calls.vmapped,
                                allocates=_grouped),
    "depthwise_grouped": Kernel(IMAGES, grids.SEEN, flop, kernel_calls.grouped_depthwise),
    "depthwise_vmap": Kernel(IMAGES, grids.DEPTHWISE, flop, kernel_calls.vmapped_depthwise),
    "im2col": Kernel(IMAGES, grids.UNFOLD, float32_bytes, kernel_calls.patches,
                     allocates=_product(0, 1, 2, 3)),
    "copy": Kernel(("bytes",), _POWERS, lambda s: 2.0 * s[0], kernel_calls.pointwise),
    "scatter": Kernel(("rows", "width"), grids.SCATTERED, float32_bytes, kernel_calls.scatter),
    "norm": Kernel(ROWS, grids.STORED, float32_bytes, kernel_calls.squared_norms),
    "mv": Kernel(ROWS, grids.STORED, float32_bytes, kernel_calls.matrix_vector),
    "fresh": Kernel(("bytes",), ((2 * FRESH,), (4 * FRESH,)), lambda s: float(s[0]),
                    kernel_calls.fresh_memory),
    "launch": Kernel(ONE, ((1,),), lambda s: 1.0, kernel_calls.tiny),
}
# Every Cost needs these three, so a profile without them is none.
BASIC = ("copy", "fresh", "launch")
PRODUCTS = frozenset(name for name, kernel in KERNELS.items() if kernel.unit == "flop")
