"""Shapes at which the library's kernels are held to their references: by the interpreter, and on a
GPU by `gpu_run.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxperex.kernels import Shape

# groups, positions, inputs, outputs
LINEAR = [(1, 5, 3, 2), (2, 37, 21, 70), (1, 130, 65, 17)]
# Further ones: no positions, one of all, sizes on and beside a tile's.
LINEAR_ODD = [
    (1, 0, 3, 2),
    (1, 1, 1, 1),
    (3, 1, 8, 4),
    (1, 64, 128, 128),
    (1, 65, 129, 127),
    (1, 1024, 16, 16),
    (1, 300, 256, 48),
]
GRAM = [(1, 1, 3, 2), (2, 19, 5, 40), (1, 150, 33, 7)]
GRAM_ODD = [(1, 64, 16, 16), (1, 65, 1, 1), (3, 7, 64, 3), (1, 257, 24, 10)]
# (images, channels, outputs, input size), (kernel, stride, dilation, before, groups)
CONVS = [
    ((1, 3, 5, (9,)), ([3], [1], [1], [1], 1)),
    ((1, 4, 6, (11,)), ([2], [2], [3], [0], 2)),
    ((2, 3, 5, (7, 6)), ([3, 2], [2, 1], [1, 2], [1, 1], 1)),
    ((1, 6, 8, (8, 5)), ([3, 3], [2, 3], [2, 1], [2, 1], 2)),
    ((1, 20, 17, (5, 5)), ([1, 1], [1, 1], [1, 1], [0, 0], 1)),
    ((1, 4, 2, (4, 5, 3)), ([2, 2, 3], [1, 2, 1], [1, 1, 1], [1, 0, 1], 2)),
    ((2, 5, 5, (6, 7)), ([3, 3], [1, 2], [1, 1], [1, 1], 5)),
    ((1, 3, 6, (9,)), ([4], [2], [2], [3], 3)),
]
# Further ones: more padding than the image, than the kernel; a depthwise multiplier, wide channels,
# a first layer.
CONVS_ODD = [
    ((1, 3, 4, (3,)), ([3], [1], [1], [7], 1)),
    ((1, 2, 3, (2, 2)), ([3, 3], [1, 1], [1, 1], [4, 4], 1)),
    ((1, 1, 1, (1, 1)), ([1, 1], [1, 1], [1, 1], [0, 0], 1)),
    ((2, 6, 18, (8, 8)), ([3, 3], [1, 1], [1, 1], [1, 1], 6)),
    ((1, 64, 64, (8, 8)), ([3, 3], [1, 1], [1, 1], [1, 1], 1)),
    ((1, 3, 64, (32, 32)), ([7, 7], [2, 2], [1, 1], [3, 3], 1)),
    ((1, 130, 66, (6, 6)), ([1, 1], [2, 2], [1, 1], [0, 0], 1)),
    ((1, 8, 8, (5, 6, 7)), ([3, 3, 3], [2, 1, 2], [1, 2, 1], [1, 2, 1], 8)),
]
# positions, width, entries of the table
EMBEDDING = [(1, 3, 4), (17, 33, 5), (40, 150, 1000)]
EMBEDDING_ODD = [(128, 64, 2), (300, 257, 50257)]
# One per-example gradient
WEIGHTED: list[tuple[int, ...]] = [(1,), (3, 700), (2050,)]
WEIGHTED_ODD: list[tuple[int, ...]] = [(), (64, 64, 3, 3), (1_000_003,)]


def conv_case(
    sizes: tuple[Any, ...], options: tuple[Any, ...], channels_last: bool
) -> tuple[Tensor, Tensor, Shape]:
    """Returns (inputs, output gradients, shape) of three examples; `channels_last`: laid out
    channels last."""
    images, channels, outputs, size = sizes
    shape = Shape(*options)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in
           zip(size, shape.kernel, shape.stride, shape.dilation, shape.before, strict=True)]
    x, g = torch.randn(3, images, channels, *size), torch.randn(3, images, outputs, *out)
    if channels_last:
        x, g = (v.movedim(2, -1).contiguous().movedim(-1, 2) for v in (x, g))
    return x, g, shape
