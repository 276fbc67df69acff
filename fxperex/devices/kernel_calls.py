"""How each kernel class is called to be measured: `name(shape, dtype, device)` returns a call that
runs it once, on operands of ones.

A shape's sizes are those that its kernel class names (`kernel_classes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fxperex.devices.grids import Shape
from fxperex.kernels.embedding import added
from fxperex.kernels.linear import linear_sq_norm
from fxperex.layers.windows import Geometry, unfold
from fxperex.numerics.norms import sq_norm

Call = Callable[[], object]
Make = Callable[[Shape, torch.dtype, torch.device], Call]


def mm(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    m, k, n = s
    g, a = _ones(device, dtype, k, m), _ones(device, dtype, k, n)
    return lambda: g.t() @ a


def bmm(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    b, p, t, d = s
    g, a = _ones(device, dtype, b, t, p), _ones(device, dtype, b, t, d)
    return lambda: g.transpose(1, 2) @ a


def bmm_patches(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    b, p, t, d = s
    g, a = _ones(device, dtype, b, p, t), _ones(device, dtype, b, t, d)
    return lambda: g @ a


def bmm_columns(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    b, p, t, d = s
    g, a = _ones(device, dtype, b, p, t), _ones(device, dtype, b, d, t)
    return lambda: g @ a.transpose(1, 2)


def stream(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    b, p, t, d = s
    g, a = _ones(device, dtype, b, 1, t, p), _ones(device, dtype, b, 1, t, d)
    return lambda: linear_sq_norm(a, g)


def gram(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    x = _ones(device, torch.float64, *s)
    return lambda: x @ x.transpose(1, 2)


def _image(n: int, c: int, t: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An image whose convolution with a k x k kernel, padded by k // 2, has about t positions."""
    side = max(round(math.sqrt(t)), 1)
    return _ones(device, dtype, n, c, side, side)


def convolution_backward(mask: list[bool]) -> Make:
    def make(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
        n, c, p, t, taps = s
        k = round(math.sqrt(taps))
        x, g = _image(n, c, t, k, dtype, device), _image(n, p, t, k, dtype, device)
        w = _ones(device, dtype, p, c, k, k)
        return lambda: torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [k // 2] * 2,
                                                           [1, 1], False, [0, 0], 1, mask)

    return make


def convolution_forward(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    n, c, p, t, taps = s
    k = round(math.sqrt(taps))
    x, w = _image(n, c, t, k, dtype, device), _ones(device, dtype, p, c, k, k)
    return lambda: F.conv2d(x, w, padding=k // 2)


def depthwise(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    n, c, t, taps = s
    k = round(math.sqrt(taps))
    x, w = _image(n, c, t, k, dtype, device), _ones(device, dtype, c, 1, k, k)
    return lambda: torch.ops.aten.convolution_backward(x, x, w, None, [1, 1], [k // 2] * 2, [1, 1],
                                                       False, [0, 0], c, [False, True, False])


def grouped(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    n, c, p, t, taps = s
    k = round(math.sqrt(taps))
    x = _image(n, c, t, k, dtype, device).transpose(0, 1)
    filters = _image(n, p, t, k, dtype, device).flatten(0, 1).unsqueeze(1)
    return lambda: F.conv2d(x, filters, padding=k // 2, groups=n)


def vmapped(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    n, c, p, t, taps = s
    k = round(math.sqrt(taps))
    x = _image(n, c, t, k, dtype, device).flatten(0, 1).unsqueeze(0)
    g = _image(n, p, t, k, dtype, device).flatten(0, 1).unsqueeze(0)
    w = _ones(device, dtype, n * p, c, k, k)
    return lambda: torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [k // 2] * 2, [1, 1],
                                                       False, [0, 0], n, [False, True, False])


def grouped_depthwise(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    n, c, t, taps = s
    k = round(math.sqrt(taps))
    x = _image(1, n * c, t, k, dtype, device)
    return lambda: F.conv2d(x, x.transpose(0, 1), padding=k // 2, groups=n * c)


def vmapped_depthwise(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    n, c, t, taps = s
    return vmapped((n * c, 1, 1, t, taps), dtype, device)


def patches(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    n, c, t, taps = s
    k = round(math.sqrt(taps))
    x = _image(n, c, t, k, dtype, device)
    pads = (k // 2,) * 2
    shape = Geometry((k, k), (1, 1), (1, 1), pads, pads, 1, (0, 0), (k, k))
    return lambda: unfold(x, shape)


def pointwise(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    x = _ones(device, dtype, s[0] // 4)
    out = torch.empty_like(x)
    return lambda: torch.add(x, 1, out=out)


def scatter(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    rows, width = s
    g, places = _ones(device, dtype, rows, width), torch.arange(rows, device=device) * 7 % rows
    return lambda: added(places, g, rows)


def squared_norms(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    x = _ones(device, dtype, *s)
    return lambda: sq_norm(x)


def matrix_vector(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    x, v = _ones(device, dtype, *s), _ones(device, dtype, s[0])
    return lambda: x.t() @ v


def fresh_memory(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    return lambda: torch.empty(s[0] // 4, device=device, dtype=dtype).fill_(1.0)


def tiny(s: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    x = _ones(device, dtype, 8)
    return lambda: x + 1


def _ones(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.ones(shape, device=device, dtype=dtype)
