"""The kernel classes of the roofline: for each its sizes, the shapes to measure, and how to call it.

A kernel's amount is in flop for products and convolutions, in bytes for what moves memory, and 1 for a launch.
Shapes span what layers have; between them the rate is interpolated (`surface.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxperex.kernels.embedding import added
from fxperex.layers.windows import Geometry, unfold
from fxperex.numerics import sq_norm
from fxperex.workspace import FRESH, blocked

Shape = tuple[int, ...]
Make = Callable[[Shape, torch.dtype, torch.device], Callable[[], object]]
LIMIT = 6e8  # flop, or bytes, of the largest call of a whole grid
LARGE = 2.5e9  # flop of the largest call measured
DEEP = 2304  # positions up to which shapes of every kind are measured; beyond it some, of few channels


@dataclass(frozen=True)
class Kernel:
    """`axes` name the sizes of a shape; `amount(shape)` is the work of one call; `dtypes` are measured beside float32.

    `made(shape)`: elements of the tensors that a call allocates. Where one is so large that it is untouched memory every
    time (`workspace.FRESH`), touching it can cost more than the kernel: such shapes are not measured, it is added (`Profile.of`).
    """

    axes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    amount: Callable[[Shape], float]
    make: Make
    dtypes: tuple[torch.dtype, ...] = ()
    made: Callable[[Shape], tuple[float, ...]] = lambda s: ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(s for s in self.shapes if 4 * max(self.made(s), default=0) < FRESH))


OTHERS = (torch.bfloat16, torch.float64)


def _grid(*axes: Iterable[int], amount: Callable[[Shape], float] = math.prod, most: float = LIMIT) -> tuple[Shape, ...]:
    return tuple(s for s in itertools.product(*axes) if amount(s) <= most)


def _large(*axes: Iterable[int]) -> tuple[Shape, ...]:
    """The shapes of a grid that are too large for a whole one."""
    return tuple(s for s in _grid(*axes, amount=_product, most=LARGE) if _product(s) > LIMIT)


def _product(s: Shape) -> float:
    return 2.0 * math.prod(s)


def _gram_work(s: Shape) -> float:
    return 2.0 * s[0] * s[1] ** 2 * s[2]


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
    g, a = _ones(device, dtype, b, p, t), _ones(device, dtype, b, d, t)
    return lambda: g @ a.transpose(1, 2)


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
        return lambda: torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [k // 2] * 2, [1, 1], False, [0, 0], 1, mask)

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
    return lambda: torch.ops.aten.convolution_backward(x, x, w, None, [1, 1], [k // 2] * 2, [1, 1], False, [0, 0], c,
                                                       [False, True, False])


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
    return lambda: torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [k // 2] * 2, [1, 1], False, [0, 0], n,
                                                       [False, True, False])


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


def _bytes(s: Shape) -> float:
    return 4.0 * math.prod(s)


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
_DEEP = _grid((1, 8), (3, 25), (25,), (16384, 65536), (9, 25), amount=_product)
_CONVS = (*_grid((1, 8, 32), (3, 16, 64, 256), (16, 64, 256), (4, 49, 256, DEEP), (1, 9, 25), amount=_product),
          *_large((1, 8), (64, 256, 512), (128, 512, 1024), (16, 256, DEEP), (1, 9)), *_DEEP)
_EACH = (*_grid((8, 32), (3, 16, 64, 256), (16, 64, 256), (4, 49, 256, DEEP), (1, 9, 25), amount=_product),
         *_large((4, 16), (128, 512), (128, 512), (16, 256, DEEP), (1, 9)))
# Channels that fill whole blocks, and channels that do not: a CPU's grouped convolution takes other ways (`workspace.partial`).
_BLOCKED = tuple(s for s in _EACH if s[1] >= 16)
_PARTIAL = (*_grid((8, 32), (3, 25, 75), (10, 25, 100), (49, 256, DEEP), (1, 9, 25), amount=_product),
            *_large((4, 16), (75, 150), (100, 390), (256, DEEP), (9, 25)), *_DEEP)
_MM = (*_grid((10, 64, 256, 1024), (8, 64, 512, 4096), (10, 64, 256, 1024), amount=_product),
       *_large((512, 2048), (64, 512), (1024, 4096)))
_BMM = (*_grid((4, 32), (16, 64, 256, 1024), (1, 4, 16, 64, 512), (16, 64, 256, 1024), amount=_product),
        *_large((4, 16), (384, 1024), (64, 256), (384, 1024)))
_BMM_PATCHES = (*_grid((8, 32), (16, 64, 256), (4, 49, 256, DEEP), (27, 144, 576, 2304), amount=_product),
                *_large((4, 16), (128, 512), (49, 256, DEEP), (576, 2304)), *_grid((8,), (25,), (16384, 65536), (27, 225), amount=_product))
_GRAM = (*_grid((8, 32), (1, 4, 16, 49, 196, 784), (16, 64, 256, 1024, 4096), amount=_gram_work),
         *_grid((512, 8192), (4, 16, 49), (1, 9), amount=_gram_work))  # of every channel of a depthwise convolution
_DEPTHWISE = _grid((8, 16, 32), (16, 64, 192, 768), (1, 4, 16, 49, 196, 784), (9, 25, 49), amount=_product)
_SEEN = tuple(s for s in _DEPTHWISE if s[3] <= (2 * math.sqrt(s[2]) - 1) ** 2)  # taps that do not all see padding alone
_UNFOLD = (*_grid((8, 32), (3, 16, 64, 256), (4, 49, 256, DEEP), (9, 25), amount=_bytes), (8, 3, 16384, 9), (1, 25, 16384, 9))
_SCATTERED = _grid((64, 256, 1024, 4096), (16, 64, 192, 768), amount=_bytes)
_STORED = _grid((4, 8, 32), (16, 256, 1024, 4608, 16384, 65536, 262144, 1048576), amount=_bytes)
KERNELS: dict[str, Kernel] = {
    "mm": Kernel(("m", "k", "n"), _MM, _product, _mm, OTHERS, _of(0, 2)),
    "bmm": Kernel(_PRODUCT, _BMM, _product, _bmm, OTHERS, _of(0, 1, 3)),
    "bmm_patches": Kernel(_PRODUCT, _BMM_PATCHES, _product, _bmm_patches, OTHERS, _of(0, 1, 3)),
    "gram": Kernel(("b", "t", "d"), _GRAM, _gram_work, _gram, made=lambda s: (2.0 * s[0] * s[1] ** 2,)),
    "conv_forward": Kernel(_CONV, _CONVS[::3], _product, _forward, OTHERS, _copied),
    "conv_input": Kernel(_CONV, _CONVS[1::3], _product, _back([True, False, False]), OTHERS, _copied),
    "conv_weight": Kernel(_CONV, _CONVS, _product, _back([False, True, False]), OTHERS, _copied),
    "conv_depthwise": Kernel(_IMAGES, _SEEN, _product, _depthwise),
    "conv_grouped": Kernel(_CONV, _EACH, _product, _crb, OTHERS, _each),
    "conv_grouped_partial": Kernel(_CONV, _PARTIAL, _product, _crb, made=_each),
    "conv_vmap": Kernel(_CONV, _BLOCKED[::2], _product, _vmapped, made=_each),
    "conv_vmap_partial": Kernel(_CONV, _PARTIAL, _product, _vmapped, made=_each),
    "depthwise_grouped": Kernel(_IMAGES, _SEEN, _product, _crb_depthwise),
    "depthwise_vmap": Kernel(_IMAGES, _DEPTHWISE, _product, _vmapped_depthwise),
    "im2col": Kernel(_IMAGES, _UNFOLD, _bytes, _im2col, made=_of(0, 1, 2, 3)),
    "copy": Kernel(("bytes",), tuple((2**k,) for k in range(10, 28)), lambda s: 2.0 * s[0], _copy),
    "scatter": Kernel(("rows", "width"), _SCATTERED, _bytes, _scatter),
    "norm": Kernel(("rows", "size"), _STORED, _bytes, _norm),
    "mv": Kernel(("rows", "size"), _STORED, _bytes, _mv),
    "fresh": Kernel(("bytes",), ((2 * FRESH,), (4 * FRESH,)), lambda s: float(s[0]), _fresh),
    "launch": Kernel(("one",), ((1,),), lambda s: 1.0, _launch),
}
PRODUCTS = frozenset(name for name, kernel in KERNELS.items() if kernel.amount in (_product, _gram_work))  # amounts in flop
