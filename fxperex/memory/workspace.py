"""Bytes that a convolution on a CPU needs beside its operands and results while it runs (oneDNN's
ways, as its allocations show).

It works on copies in a blocked layout, channels padded to whole blocks: both operands are copied,
the blocked result comes after, and is copied into the plain one once the operands' copies are gone.
The weight gradient of groups whose channels fill no whole blocks is a product over patches instead,
with four partial results beside it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.graph.aten import packet

# bytes from which an allocator maps untouched memory every time: glibc's largest threshold, a page
# less
FRESH = 2**25 - 2**12
BLOCK = 16  # channels of a block; an input with fewer is read as it is
# positions for one thread, below which every thread gets patches and partial results of its own
ALONE = 512


def workspace(node: fx.Node) -> float:
    """Returns the bytes for one ATen node with fake values in `meta["val"]`; 0 where nothing is
    known.
    """
    op = packet(node) if node.op == "call_function" else ""
    if op not in {"convolution", "convolution_backward"}:
        return 0.0
    first, y, *remaining = (a.meta["val"] for a in node.args[:3] if isinstance(a, fx.Node))
    if not copies(first.device) or first.element_size() > 4:
        return 0.0
    if op == "convolution":
        return convolution(_blocked(first), _bytes(y), _blocked(node.meta["val"]))
    gradient, x, weight, mask = first, y, remaining[0], node.args[10]
    needs = [0.0]
    if mask[0]:  # type: ignore[index]
        needs.append(convolution(_blocked(gradient), _bytes(weight), _blocked(x, whole=True)))
    if mask[1]:  # type: ignore[index]
        # An expanded stand-in for the weight is written out first.
        spread = _bytes(weight) if 0 in weight.stride() else 0.0
        needs.append(
            spread +
            _weight_gradient(gradient, x, weight, int(node.args[9])))  # type: ignore[arg-type]
    return max(needs)


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, groups: int) -> float:
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    if inputs == outputs == 1:  # depthwise: the operands as they are
        return 0.0
    if groups > 1 and partial(inputs, outputs):
        positions = math.prod(gradient.shape[2:])
        columns = float(math.prod(weight.shape[1:]) * positions * x.element_size())
        return by_patches(columns, _bytes(weight), positions)  # gone before the result is laid out
    return convolution(_blocked(gradient), _blocked(x), _bytes(weight))


def copies(device: torch.device) -> bool:
    """True where convolutions work on copies of their operands."""
    return device.type != "cuda"


def convolution(one: float, two: float, result: float) -> float:
    """Returns the bytes for two operands and a result of those (blocked) sizes."""
    return max(one + two, result)


def blocked(channels: int) -> float:
    """Returns the channels that a copy in blocks has; 0 where there are too few and images are read
    as they are.
    """
    return float(BLOCK * math.ceil(channels / BLOCK)) if channels >= BLOCK else 0.0


def partial(inputs: int, outputs: int) -> bool:
    """True where the channels of a group fill no whole blocks."""
    return bool(inputs % BLOCK or outputs % BLOCK)


def by_patches(columns: float, weights: float, positions: int) -> float:
    """Returns the bytes for patches of one image and group, and partial results of the size of all
    groups' weights.
    """
    threads = torch.get_num_threads()
    return (threads if positions < ALONE * threads else 1) * (columns + 4 * weights)


def _bytes(t: Any) -> float:
    return float(t.numel() * t.element_size()) if isinstance(t, Tensor) else 0.0


def _blocked(t: Tensor, whole: bool = False) -> float:
    channels = t.shape[1]
    return _bytes(t) / channels * blocked(max(channels, BLOCK) if whole else channels)
