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

Shape = tuple[int, ...]
Make = Callable[[Shape, torch.dtype, torch.device], Callable[[], object]]
LIMIT = 6e8  # flop, or bytes, of the largest call measured


@dataclass(frozen=True)
class Kernel:
    """`axes` name the sizes of a shape; `amount(shape)` is the work of one call; `dtypes` are measured beside float32."""

    axes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    amount: Callable[[Shape], float]
    make: Make
    dtypes: tuple[torch.dtype, ...] = ()


OTHERS = (torch.bfloat16, torch.float64)


def _grid(*axes: Iterable[int], amount: Callable[[Shape], float] = math.prod, least: float = 0) -> tuple[Shape, ...]:
    return tuple(s for s in itertools.product(*axes) if least <= amount(s) <= LIMIT)


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


def _store(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    return lambda: torch.empty(s[0] // 4, device=device, dtype=dtype).fill_(1.0)


def _launch(s: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x = _ones(device, dtype, 8)
    return lambda: x + 1


def _ones(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.ones(shape, device=device, dtype=dtype)


def _bytes(s: Shape) -> float:
    return 4.0 * math.prod(s)


_CONV = ("n", "inputs", "outputs", "positions", "taps")
_PRODUCT = ("b", "p", "t", "d")
_IMAGES = ("n", "channels", "positions", "taps")
_CONVS = _grid((1, 8, 32), (3, 16, 64, 256), (16, 64, 256), (4, 49, 256, 2304), (1, 9, 25), amount=_product)
_EACH = _grid((8, 32), (3, 16, 64, 256), (16, 64, 256), (4, 49, 256, 2304), (1, 9, 25), amount=_product)
# Channels that fill whole blocks, and channels that do not: a CPU's grouped convolution takes other ways (`workspace.partial`).
_BLOCKED = tuple(s for s in _EACH if s[1] >= 16)
_PARTIAL = _grid((8, 32), (3, 25, 75), (10, 25, 100), (49, 256, 2304), (1, 9, 25), amount=_product)
_MM = _grid((10, 64, 256, 1024), (8, 64, 512, 4096), (10, 64, 256, 1024), amount=_product)
_BMM = _grid((4, 32), (16, 64, 256, 1024), (1, 4, 16, 64, 512), (16, 64, 256, 1024), amount=_product)
_BMM_PATCHES = _grid((8, 32), (16, 64, 256), (4, 49, 256, 2304), (27, 144, 576, 2304), amount=_product)
_GRAM = _grid((8, 32), (1, 4, 16, 49, 196, 784), (16, 64, 256, 1024, 4096), amount=_gram_work)
_DEPTHWISE = _grid((8, 32), (16, 96, 384), (4, 16, 196, 784), (9, 25, 49), amount=_product)
_UNFOLD = _grid((8, 32), (3, 16, 64, 256), (4, 49, 256, 2304), (9, 25), amount=_bytes)
_SCATTERED = _grid((64, 256, 1024, 4096), (16, 64, 192, 768), amount=_bytes)
_STORED = _grid((4, 8, 32), (16, 256, 1024, 4608, 16384, 65536, 262144, 1048576), amount=_bytes)
KERNELS: dict[str, Kernel] = {
    "mm": Kernel(("m", "k", "n"), _MM, _product, _mm, OTHERS),
    "bmm": Kernel(_PRODUCT, _BMM, _product, _bmm, OTHERS),
    "bmm_patches": Kernel(_PRODUCT, _BMM_PATCHES, _product, _bmm_patches, OTHERS),
    "gram": Kernel(("b", "t", "d"), _GRAM, _gram_work, _gram),
    "conv_forward": Kernel(_CONV, _CONVS[::3], _product, _forward, OTHERS),
    "conv_input": Kernel(_CONV, _CONVS[1::3], _product, _back([True, False, False]), OTHERS),
    "conv_weight": Kernel(_CONV, _CONVS, _product, _back([False, True, False]), OTHERS),
    "conv_depthwise": Kernel(_IMAGES, _DEPTHWISE, _product, _depthwise),
    "conv_grouped": Kernel(_CONV, _EACH, _product, _crb, OTHERS),
    "conv_vmap": Kernel(_CONV, _BLOCKED[::2], _product, _vmapped),
    "conv_vmap_partial": Kernel(_CONV, _PARTIAL, _product, _vmapped),
    "depthwise_grouped": Kernel(_IMAGES, _DEPTHWISE, _product, _crb_depthwise),
    "depthwise_vmap": Kernel(_IMAGES, _DEPTHWISE, _product, _vmapped_depthwise),
    "im2col": Kernel(_IMAGES, _UNFOLD, _bytes, _im2col),
    "copy": Kernel(("bytes",), tuple((2**k,) for k in range(10, 28)), lambda s: 2.0 * s[0], _copy),
    "scatter": Kernel(("rows", "width"), _SCATTERED, _bytes, _scatter),
    "norm": Kernel(("rows", "size"), _STORED, _bytes, _norm),
    "mv": Kernel(("rows", "size"), _STORED, _bytes, _mv),
    "store": Kernel(("bytes",), tuple((2**k,) for k in range(18, 28)), lambda s: float(s[0]), _store),
    "launch": Kernel(("one",), ((1,),), lambda s: 1.0, _launch),
}
PRODUCTS = frozenset(name for name, kernel in KERNELS.items() if kernel.amount in (_product, _gram_work))  # amounts in flop
