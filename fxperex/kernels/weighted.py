"""`sum_b f_b grad_b` of stored per-example gradients: bound by memory, so each is read once, in its
own dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.config import accumulator
from fxperex.kernels.device import SMALL, runs
from fxperex.numerics.norms import memory_order, permuted

FUSED = 2**22  # bytes below which it is worth more to let Inductor fuse them


def by_factors(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns `weighted_sum(grads, factors, valid)`, contiguous; of small gradients by plain
    operations.
    """
    order = memory_order(grads)
    laid = permuted(grads, order)
    total = _product(laid, factors, valid) if grads.nbytes < SMALL else weighted_sum(
        laid, factors, valid)
    return permuted(total, [order.index(i) - 1 for i in range(1, len(order))]).contiguous()


@torch.library.custom_op("fxperex::weighted_sum", mutates_args=())
def weighted_sum(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns `sum_b factors[b] grads[b]`, float32 or wider, for `[B, ...]`; rows with `valid`
    False add nothing.
    """
    if runs(grads):
        from fxperex.kernels.gpu.weighted import launch

        return launch(grads, factors, valid)
    if grads.device.type != "cpu":  # asking which rows count would wait for it
        return _product(grads, factors, valid)
    if bool(valid.all()):
        return _product(grads, factors, None)
    return _product(grads, factors, valid) if grads.nbytes < FUSED else _row_by_row(
        grads, factors, valid)


def _row_by_row(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """The sum over the rows that count, without a copy of them all: padding must not need more
    memory than a full batch.
    """
    total = torch.zeros(grads.shape[1:], dtype=accumulator(grads.dtype), device=grads.device)
    for row, factor, counts in zip(grads, factors.tolist(), valid.tolist(), strict=True):
        if counts:
            total.add_(row, alpha=factor)
    return total


def _product(grads: Tensor, factors: Tensor, valid: Tensor | None) -> Tensor:
    flat, dtype = grads.reshape(len(grads), grads.shape[1:].numel()), accumulator(grads.dtype)
    if valid is not None:
        flat = torch.where(valid[:, None], flat,
                           torch.zeros((), dtype=flat.dtype, device=flat.device))
    return (flat.to(dtype).t() @ factors.to(dtype)).reshape(grads.shape[1:])


@weighted_sum.register_fake
def _(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    return grads.new_empty(grads.shape[1:], dtype=accumulator(grads.dtype))


def plainly(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor | None:
    """Returns the same by operations that a compiler can fuse, or None for gradients that are
    better left to the kernel.
    """
    return _product(grads, factors, valid) if grads.nbytes < FUSED else None
