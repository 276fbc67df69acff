"""`sum_b f_b grad_b` of stored gradients: bound by memory, so each is read once, in its dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.config import accumulator
from fxperex.kernels.device import SMALL, runs
from fxperex.numerics.norms import memory_order, permuted

FUSED = 2**22  # bytes of gradients up to which it is better to let Inductor fuse the operations


def by_factors(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns `weighted_sum(grads, factors, valid)`, contiguous; small ones by plain operations."""
    order = memory_order(grads)
    dense, form = permuted(grads, order), _product if grads.nbytes < SMALL else weighted_sum
    total = form(dense, factors, valid)
    return permuted(total, [order.index(i) - 1 for i in range(1, len(order))]).contiguous()


@torch.library.custom_op("fxperex::weighted_sum", mutates_args=())
def weighted_sum(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns `sum_b factors[b] grads[b]`, float32 or wider, for `[B, ...]`; rows with `valid`
    False add nothing.
    """
    if runs(grads):
        from fxperex.kernels.gpu.weighted import launch

        return launch(grads, factors, valid)
    if grads.device.type != "cpu":  # to ask which rows count would wait for the device
        return _product(grads, factors, valid)
    if bool(valid.all()):
        return _product(grads, factors, None)
    form = _product if grads.nbytes < FUSED else _row_by_row
    return form(grads, factors, valid)


def _row_by_row(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns the sum over the rows that count, without a copy of all rows: a padded batch must not
    need more memory than a full one.
    """
    total = torch.zeros(grads.shape[1:], dtype=accumulator(grads.dtype), device=grads.device)
    for row, factor, counts in zip(grads, factors.tolist(), valid.tolist(), strict=True):
        if counts:
            total.add_(row, alpha=factor)
    return total


def _product(grads: Tensor, factors: Tensor, valid: Tensor | None) -> Tensor:
    flat, dtype = grads.reshape(len(grads), grads.shape[1:].numel()), accumulator(grads.dtype)
    if valid is not None:
        zero = torch.zeros((), dtype=flat.dtype, device=flat.device)
        flat = torch.where(valid[:, None], flat, zero)
    return (flat.to(dtype).t() @ factors.to(dtype)).reshape(grads.shape[1:])


@weighted_sum.register_fake
def _(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    return grads.new_empty(grads.shape[1:], dtype=accumulator(grads.dtype))


def plainly(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor | None:
    """Returns `weighted_sum` by operations that a compiler can fuse, or None if the kernel is
    better.
    """
    return _product(grads, factors, valid) if grads.nbytes < FUSED else None
