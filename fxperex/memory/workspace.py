"""Bytes that a convolution on a CPU needs while it runs, in addition to its operands and results.

This is what oneDNN's allocations show. It works on copies in a blocked layout, with channels padded
to full blocks. Both operands are copied, then the blocked result is formed. It is copied into the
plain result after the operands' copies are freed. If the channels of a group do not fill their
blocks, the weight gradient is a product over patches instead, with four partial results.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.graph.aten import packet

# Tensors of at least so many bytes are new, untouched memory every time: a page below glibc's
# largest threshold for reuse.
FRESH = 2**25 - 2**12
BLOCK = 16  # channels of a block; an input with fewer is read as it is
# With fewer positions per thread, every thread has its own patches and partial results.
ALONE = 512


def workspace(node: fx.Node) -> float:
    """Returns the bytes for one ATen node with fake values in `meta["val"]`; 0 if it is not a
    convolution that works on copies.
    """
    op = packet(node) if node.op == "call_function" else ""
    if op not in {"convolution", "convolution_backward"}:
        return 0.0
    operands = [a.meta["val"] for a in node.args[:3] if isinstance(a, fx.Node)]
    if not copies(operands[0].device) or operands[0].element_size() > 4:
        return 0.0
    if op == "convolution":
        x, weight = operands[:2]
        return convolution(_blocked(x), _bytes(weight), _blocked(node.meta["val"]))
    (gradient, x, weight), mask = operands, node.args[10]
    needs = [0.0]
    if mask[0]:  # type: ignore[index]
        needs.append(convolution(_blocked(gradient), _bytes(weight), _blocked(x, at_least=BLOCK)))
    if mask[1]:  # type: ignore[index]
        # An expanded stand-in for the weight is written out first.
        spread = _bytes(weight) if 0 in weight.stride() else 0.0
        groups = int(node.args[9])  # type: ignore[arg-type]
        needs.append(spread + _weight_gradient(gradient, x, weight, groups))
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
    """True if convolutions on `device` work on copies of their operands."""
    return device.type != "cuda"


def convolution(x: float, y: float, result: float) -> float:
    """Returns the bytes for copies of two operands and of a result, given the bytes of each."""
    return max(x + y, result)


def blocked(channels: int) -> float:
    """Returns the channels of a copy in blocks; 0 if there are too few to be copied."""
    return float(BLOCK * math.ceil(channels / BLOCK)) if channels >= BLOCK else 0.0


def partial(inputs: int, outputs: int) -> bool:
    """True if the channels of a group do not fill their blocks."""
    return bool(inputs % BLOCK or outputs % BLOCK)


def by_patches(columns: float, weights: float, positions: int) -> float:
    """Returns the bytes for patches (`columns` bytes for one image and group) and partial results
    (`weights` bytes each).
    """
    threads = torch.get_num_threads()
    return (threads if positions < ALONE * threads else 1) * (columns + 4 * weights)


def _bytes(t: Any) -> float:
    return float(t.numel() * t.element_size()) if isinstance(t, Tensor) else 0.0


def _blocked(t: Tensor, at_least: int = 0) -> float:
    """Returns the bytes of a copy in blocks; it counts as many channels as `at_least`."""
    channels = t.shape[1]
    return _bytes(t) / channels * blocked(max(channels, at_least))
