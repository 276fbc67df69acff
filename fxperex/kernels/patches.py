"""The patches of a convolution's input: one strided copy of the padded image into fresh memory.

Two to seven times as fast as `aten.im2col` on a CPU (64 channels, 16 x 16 pixels, kernel 3, 16 examples, two threads: 0.29
against 1.39 ms). An op of its own, because Inductor's own code for such a copy is slower than either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("fxperex::patches", mutates_args=())
def patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], before: Sequence[int],
            after: Sequence[int]) -> Tensor:
    """Returns `[N, C |K|, T]` of `x [N, C, *S]`, channels outermost, then taps; zero outside the image."""
    n = len(kernel)
    sides = [w for pair in reversed(list(zip(before, after, strict=True))) for w in pair]
    seen = F.pad(x, sides) if any(sides) else x
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        seen = seen.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    seen = seen.permute(0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))
    return x.new_empty(seen.shape).copy_(seen).reshape(x.shape[0], x.shape[1] * math.prod(kernel), -1)


@patches.register_fake
def _(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], before: Sequence[int],
      after: Sequence[int]) -> Tensor:
    sizes = [(size + low + high - d * (k - 1) - 1) // s + 1 for size, k, s, d, low, high in
             zip(x.shape[2:], kernel, stride, dilation, before, after, strict=True)]
    return x.new_empty((x.shape[0], x.shape[1] * math.prod(kernel), math.prod(sizes)))
