"""Per-example weight gradients of convolutions as an implicit product, without patches in memory.

`grad_b[o,c,k] = sum_{j,t} x_b[j, c, s t + d k - p] g_b[j, o, t]`. `x [B,J,C,*S]` and `g
[B,J,O,*S']` hold `J` images per example: 1, unless code merges a dimension into the batch. Strides
are free: channels-last needs no copy.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fxperex.kernels.conv_shape import Shape
from fxperex.kernels.device import ANY_STRIDES, runs
from fxperex.numerics.norms import sq_norm


@torch.library.custom_op("fxperex::conv_sq_norm", mutates_args=(), tags=ANY_STRIDES)
def conv_sq_norm(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], dilation: list[int],
                 before: list[int], groups: int) -> Tensor:
    """Returns squared norms of the weight gradients, float64 `[B]`, without storing these."""
    shape = Shape(kernel, stride, dilation, before, groups)
    return _run(x, g, shape, None, "ieee")[1]


@conv_sq_norm.register_fake
def _(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], dilation: list[int],
      before: list[int], groups: int) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.float64)


@torch.library.custom_op("fxperex::conv_gradients", mutates_args=(), tags=ANY_STRIDES)
def conv_gradients(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], dilation: list[int],
                   before: list[int], groups: int, precision: str) -> tuple[Tensor, Tensor]:
    """Returns (weight gradients `[B,O,C/G,*K]` in the operands' dtype, their squared norms `[B]`).
    """
    grads, squares = _run(x, g, Shape(kernel, stride, dilation, before, groups), x.dtype, precision)
    assert grads is not None
    return grads, squares


@conv_gradients.register_fake
def _(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], dilation: list[int],
      before: list[int], groups: int, precision: str) -> tuple[Tensor, Tensor]:
    grads = x.new_empty(x.shape[0], g.shape[2], x.shape[2] // groups, *kernel)
    return grads, x.new_empty(x.shape[0], dtype=torch.float64)


def _run(x: Tensor, g: Tensor, shape: Shape, store: torch.dtype | None,
         precision: str) -> tuple[Tensor | None, Tensor]:
    if not runs(x, g):
        grads = reference(x, g, shape)
        return grads, sq_norm(grads)
    if x.shape[2] == shape.groups:
        from fxperex.kernels.gpu.depthwise import launch as depthwise

        return depthwise(x, g, shape, store)
    from fxperex.kernels.gpu.conv import launch

    return launch(x, g, shape, store, precision)


def reference(x: Tensor, g: Tensor, shape: Shape) -> Tensor:
    """Returns the gradients `[B,O,C/G,*K]`: a product of shifted inputs and output gradients for
    every tap.
    """
    rows, images, channels = x.shape[:3]
    groups, outputs, positions = shape.groups, g.shape[2], g.shape[3:]
    gs = g.reshape(rows, images, groups, outputs // groups, positions.numel())
    taps = []
    for tap in itertools.product(*map(range, shape.kernel)):
        shifted = _shift(x, tap, shape, positions)
        xs = shifted.reshape(rows, images, groups, channels // groups, positions.numel())
        taps.append(torch.einsum("bjgpt,bjgct->bgpc", gs, xs))
    return torch.stack(taps, -1).reshape(rows, outputs, channels // groups, *shape.kernel)


def _shift(x: Tensor, tap: tuple[int, ...], shape: Shape, positions: torch.Size) -> Tensor:
    """Returns `x[..., s t + d k - p]` for all positions t; zero outside the input."""
    for i, (k, n) in enumerate(zip(tap, positions, strict=True)):
        start = shape.dilation[i] * k - shape.before[i]
        places = torch.arange(n, device=x.device) * shape.stride[i] + start
        inside = (places >= 0) & (places < x.shape[3 + i])
        x = x.index_select(3 + i, places.clamp(0, x.shape[3 + i] - 1))
        x = x * inside.to(x.dtype).view(*(-1 if d == 3 + i else 1 for d in range(x.dim())))
    return x
