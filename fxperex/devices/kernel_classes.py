"""The kernel classes of the roofline: for each its sizes, the shapes to measure (`grids.py`), and
how to call it.

A kernel's amount is in flop for products and convolutions, in bytes for what moves memory, and 1
for a launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxperex.devices.grids import (
    BLOCKED,
    BMM,
    BMM_COLUMNS,
    BMM_PATCHES,
    CONVS,
    DEPTHWISE,
    EACH,
    GRAM,
    MM,
    PARTIAL,
    SCATTERED,
    SEEN,
    STORED,
    UNFOLD,
    Shape,
    float32_bytes,
    flop,
    gram_flop,
)
from fxperex.kernels.embedding import added
from fxperex.kernels.linear import linear_sq_norm
from fxperex.layers.windows import Geometry, unfold
from fxperex.memory.workspace import FRESH, blocked
from fxperex.numerics.norms import sq_norm

Make = Callable[[Shape, torch.dtype, torch.device], Callable[[], object]]


@dataclass(frozen=True)
class Kernel:
    """`axes` name the sizes of a shape; `amount(shape)` is the work of one call; `dtypes` are
    measured beside float32.

    `made(shape)`: elements of the tensors that a call allocates. Where one is so large that it is
    untouched memory every time (`workspace.FRESH`), touching it can cost more than the kernel: such
    shapes are not measured, it is added (`Profile.of`).
    """

    axes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    amount: Callable[[Shape], float]
    make: Make
    dtypes: tuple[torch.dtype, ...] = ()
    made: Callable[[Shape], tuple[float, ...]] = lambda s: ()

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "shapes",
            tuple(s for s in self.shapes if 4 * max(self.made(s), default=0) < FRESH))


OTHERS = (torch.bfloat16, torch.float64)


def _mm(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    m, k, n = s
    g, a = _ones(device, dtype, k, m), _ones(device, dtype, k, n)
    return lambda: g.t() @ a


def _bmm(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    b, p, t, d = s
    g, a = _ones(device, dtype, b, t, p), _ones(device, dtype, b, t, d)
    return lambda: g.transpose(1, 2) @ a


def _bmm_patches(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    b, p, t, d = s
    g, a = _ones(device, dtype, b, p, t), _ones(device, dtype, b, t, d)
    return lambda: g @ a


def _bmm_columns(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    b, p, t, d = s
    g, a = _ones(device, dtype, b, p, t), _ones(device, dtype, b, d, t)
    return lambda: g @ a.transpose(1, 2)


def _stream(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    b, p, t, d = s
    g, a = _ones(device, dtype, b, 1, t, p), _ones(device, dtype, b, 1, t, d)
    return lambda: linear_sq_norm(a, g)


def _gram(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x = _ones(device, torch.float64, *s)
    return lambda: x @ x.transpose(1, 2)


def _image(n: int, c: int, t: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An image whose convolution with a k x k kernel, padded by k // 2, has about t positions."""
    side = max(round(math.sqrt(t)), 1)
    return _ones(device, dtype, n, c, side, side)


def _back(mask: list[bool]) -> Make:
    def make(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
        n, c, p, t, taps = s
        k = round(math.sqrt(taps))
        x, g = _image(n, c, t, k, dtype, device), _image(n, p, t, k, dtype, device)
        w = _ones(device, dtype, p, c, k, k)
        return lambda: torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [k // 2] * 2,
                                                           [1, 1], False, [0, 0], 1, mask)

    return make


def _forward(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    n, c, p, t, taps = s
    k = round(math.sqrt(taps))
    x, w = _image(n, c, t, k, dtype, device), _ones(device, dtype, p, c, k, k)
    return lambda: F.conv2d(x, w, padding=k // 2)


def _depthwise(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    n, c, t, taps = s
    k = round(math.sqrt(taps))
    x, w = _image(n, c, t, k, dtype, device), _ones(device, dtype, c, 1, k, k)
    return lambda: torch.ops.aten.convolution_backward(x, x, w, None, [1, 1], [k // 2] * 2, [1, 1],
                                                       False, [0, 0], c, [False, True, False])


def _crb(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    n, c, p, t, taps = s
    k = round(math.sqrt(taps))
    x = _image(n, c, t, k, dtype, device).transpose(0, 1)
    filters = _image(n, p, t, k, dtype, device).flatten(0, 1).unsqueeze(1)
    return lambda: F.conv2d(x, filters, padding=k // 2, groups=n)


def _vmapped(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    n, c, p, t, taps = s
    k = round(math.sqrt(taps))
    x = _image(n, c, t, k, dtype, device).flatten(0, 1).unsqueeze(0)
    g = _image(n, p, t, k, dtype, device).flatten(0, 1).unsqueeze(0)
    w = _ones(device, dtype, n * p, c, k, k)
    return lambda: torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [k // 2] * 2, [1, 1],
                                                       False, [0, 0], n, [False, True, False])


def _crb_depthwise(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    n, c, t, taps = s
    k = round(math.sqrt(taps))
    x = _image(1, n * c, t, k, dtype, device)
    return lambda: F.conv2d(x, x.transpose(0, 1), padding=k // 2, groups=n * c)


def _vmapped_depthwise(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    n, c, t, taps = s
    return _vmapped((n * c, 1, 1, t, taps), dtype, device)


def _im2col(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    n, c, t, taps = s
    k = round(math.sqrt(taps))
    x = _image(n, c, t, k, dtype, device)
    pads = (k // 2,) * 2
    shape = Geometry((k, k), (1, 1), (1, 1), pads, pads, 1, (0, 0), (k, k))
    return lambda: unfold(x, shape)


def _copy(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x = _ones(device, dtype, s[0] // 4)
    out = torch.empty_like(x)
    return lambda: torch.add(x, 1, out=out)


def _scatter(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    rows, width = s
    g, places = _ones(device, dtype, rows, width), torch.arange(rows, device=device) * 7 % rows
    return lambda: added(places, g, rows)


def _norm(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x = _ones(device, dtype, *s)
    return lambda: sq_norm(x)


def _mv(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x, v = _ones(device, dtype, *s), _ones(device, dtype, s[0])
    return lambda: x.t() @ v


def _fresh(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    return lambda: torch.empty(s[0] // 4, device=device, dtype=dtype).fill_(1.0)


def _launch(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x = _ones(device, dtype, 8)
    return lambda: x + 1


def _ones(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.ones(shape, device=device, dtype=dtype)


def _of(*sizes: int) -> Callable[[Shape], tuple[float, ...]]:
    """`made` of one tensor whose sizes are those of a shape at these places."""
    return lambda s: (float(math.prod(s[i] for i in sizes)),)


def _copied(s: Shape) -> tuple[float, ...]:
    """A convolution's images, in blocks of channels."""
    n, c, p, t, _ = s
    return n * t * blocked(c), n * t * blocked(p)


def _each(s: Shape) -> tuple[float, ...]:
    n, c, p, _, taps = s
    return (*_copied(s), float(n * c * p * taps))


_CONV = ("n", "inputs", "outputs", "positions", "taps")
_PRODUCT = ("b", "p", "t", "d")
_IMAGES = ("n", "channels", "positions", "taps")
KERNELS: dict[str, Kernel] = {
    "mm": Kernel(("m", "k", "n"), MM, flop, _mm, OTHERS, _of(0, 2)),
    "bmm": Kernel(_PRODUCT, BMM, flop, _bmm, OTHERS, _of(0, 1, 3)),
    "bmm_patches": Kernel(_PRODUCT, BMM_PATCHES, flop, _bmm_patches, OTHERS, _of(0, 1, 3)),
    "bmm_columns": Kernel(_PRODUCT, BMM_COLUMNS, flop, _bmm_columns, OTHERS, _of(0, 1, 3)),
    "stream": Kernel(_PRODUCT, BMM, flop, _stream),
    "gram": Kernel(("b", "t", "d"), GRAM, gram_flop, _gram, made=lambda s:
                   (2.0 * s[0] * s[1]**2, )),
    "conv_forward": Kernel(_CONV, CONVS[::3], flop, _forward, OTHERS, _copied),
    "conv_input": Kernel(_CONV, CONVS[1::3], flop, _back([True, False, False]), OTHERS, _copied),
    "conv_weight": Kernel(_CONV, CONVS, flop, _back([False, True, False]), OTHERS, _copied),
    "conv_depthwise": Kernel(_IMAGES, SEEN, flop, _depthwise),
    "conv_grouped": Kernel(_CONV, EACH, flop, _crb, OTHERS, _each),
    "conv_grouped_partial": Kernel(_CONV, PARTIAL, flop, _crb, made=_each),
    "conv_vmap": Kernel(_CONV, BLOCKED[::2], flop, _vmapped, made=_each),
    "conv_vmap_partial": Kernel(_CONV, PARTIAL, flop, _vmapped, made=_each),
    "depthwise_grouped": Kernel(_IMAGES, SEEN, flop, _crb_depthwise),
    "depthwise_vmap": Kernel(_IMAGES, DEPTHWISE, flop, _vmapped_depthwise),
    "im2col": Kernel(_IMAGES, UNFOLD, float32_bytes, _im2col, made=_of(0, 1, 2, 3)),
    "copy": Kernel(("bytes", ), tuple((2**k, ) for k in range(10, 28)), lambda s: 2.0 * s[0],
                   _copy),
    "scatter": Kernel(("rows", "width"), SCATTERED, float32_bytes, _scatter),
    "norm": Kernel(("rows", "size"), STORED, float32_bytes, _norm),
    "mv": Kernel(("rows", "size"), STORED, float32_bytes, _mv),
    "fresh": Kernel(("bytes", ), ((2 * FRESH, ), (4 * FRESH, )), lambda s: float(s[0]), _fresh),
    "launch": Kernel(("one", ), ((1, ), ), lambda s: 1.0, _launch),
}
PRODUCTS = frozenset(name for name, kernel in KERNELS.items()
                     if kernel.amount in (flop, gram_flop))  # amounts in flop
