"""The patches of a convolution's input: one strided copy of the padded image, or their products.

There are two layouts. `last`: `[N, T, |K| C]`, taps outermost, channels last. It copies long runs
of memory even of small images (256 channels, 2 x 2 pixels, kernel 3, 16 examples on a CPU, two
threads: 0.2 ms, not 1.4), and the products with it are faster. Else `[N, C |K|, T]`, channels
outermost: for groups, whose channels stay together, and for few channels. Both are faster than
`aten.im2col`. They are ops, because Inductor's own code for such a copy is slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("fxperex::patches", mutates_args=())
def patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
            before: Sequence[int], after: Sequence[int], last: bool) -> Tensor:
    """Returns `[N, T, |K| C]` (`last`) or `[N, C |K|, T]` of `x [N, C, *S]`, padded with zeros."""
    windows = _windows(x, kernel, stride, dilation, before, after, last)
    copied = x.new_empty(windows.shape).copy_(windows)
    width = x.shape[1] * math.prod(kernel)
    return copied.view(len(x), -1, width) if last else copied.view(len(x), width, -1)


def _windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
             before: Sequence[int], after: Sequence[int], last: bool) -> Tensor:
    """Returns a view `[N, *positions, *kernel, C]` (`last`) or `[N, C, *kernel, *positions]` of the
    padded image.
    """
    n = len(kernel)
    space = 1 if last else 2  # the first of the image's own dimensions
    x = x.movedim(1, -1) if last else x
    sides = [w for pair in reversed(list(zip(before, after, strict=True))) for w in pair]
    windows = F.pad(x, [0, 0, *sides] if last else sides) if any(sides) else x
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        windows = windows.unfold(space + i, d * (k - 1) + 1, s)[..., ::d]
    where, taps, channels = range(space, space + n), range(2 + n, 2 + 2 * n), 1 + n if last else 1
    order = (0, *where, *taps, channels) if last else (0, channels, *taps, *where)
    return windows.permute(order)


@patches.register_fake
def _(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
      before: Sequence[int], after: Sequence[int], last: bool) -> Tensor:
    sizes = [(size + low + high - d * (k - 1) - 1) // s + 1 for size, k, s, d, low, high in
             zip(x.shape[2:], kernel, stride, dilation, before, after, strict=True)]
    shape = math.prod(sizes), x.shape[1] * math.prod(kernel)
    return x.new_empty((len(x), *(shape if last else reversed(shape))))


@torch.library.custom_op("fxperex::products_of_patches", mutates_args=())
def products_of_patches(x: Tensor, g: Tensor, kernel: Sequence[int], stride: Sequence[int],
                        dilation: Sequence[int], before: Sequence[int], after: Sequence[int],
                        groups: int, images: int, last: bool) -> Tensor:
    """Returns `g_b^T a_b` `[N, G, P, D]` of the patches of `x [N, C, *S]` and `g [N, G P, T]`; with
    `last`, of one group.

    One buffer holds the patches of `images` images at a time. All patches together would be new
    memory in every step.
    """
    windows = _windows(x, kernel, stride, dilation, before, after, last)
    rows, positions = len(x), g.shape[2]
    outputs, inputs = g.shape[1] // groups, x.shape[1] * math.prod(kernel) // groups
    products = g.new_empty(rows, groups, outputs, inputs)
    buffer = g.new_empty(min(images, rows), *windows.shape[1:])
    for part, grads, out in zip(windows.split(images), g.split(images), products.split(images),
                                strict=True):
        a = buffer[:len(part)].copy_(part)
        a = a.view(-1, positions, inputs) if last else a.view(-1, inputs, positions).transpose(1, 2)
        torch.bmm(grads.reshape(-1, outputs, positions), a, out=out.view(-1, outputs, inputs))
    return products


@products_of_patches.register_fake
def _(x: Tensor, g: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
      before: Sequence[int], after: Sequence[int], groups: int, images: int, last: bool) -> Tensor:
    return g.new_empty(len(x), groups, g.shape[1] // groups,
                       x.shape[1] * math.prod(kernel) // groups)
