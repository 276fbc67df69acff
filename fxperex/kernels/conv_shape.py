"""The options of a convolution, as every one of its kernels takes them."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """A convolution's options, one number per spatial dimension; `before` pads the low side."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    before: list[int]
    groups: int
