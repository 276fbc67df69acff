"""`sum_b f_b grad_b` of stored per-example gradients: bound by memory, so each is read once, in its own dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.config import accumulator
from fxperex.kernels.device import runs

WORTH = 2**22  # bytes from which an operation of its own is worth it: it takes time to call, and Inductor fuses nothing into it


def by_factors(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns `weighted_sum(grads, factors, valid)`; of small gradients by plain operations."""
    large = grads.numel() * grads.element_size() >= WORTH
    return weighted_sum(grads, factors, valid) if large else _product(grads, factors, valid)


@torch.library.custom_op("fxperex::weighted_sum", mutates_args=())
def weighted_sum(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns `sum_b factors[b] grads[b]`, float32 or wider, for `[B, ...]`; rows with `valid` False add nothing."""
    if runs(grads):
        from fxperex.kernels.gpu.weighted import launch

        return launch(grads, factors, valid)
    if grads.device.type != "cpu":  # asking which rows count would wait for it
        return _product(grads, factors, valid)
    return _product(grads, factors, None) if bool(valid.all()) else _row_by_row(grads, factors, valid)


def _row_by_row(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """The sum over the rows that count, without a copy of them all: padding must not need more memory than a full batch."""
    total = torch.zeros(grads.shape[1:], dtype=accumulator(grads.dtype), device=grads.device)
    for row, factor, counts in zip(grads, factors.tolist(), valid.tolist(), strict=True):
        if counts:
            total.add_(row, alpha=factor)
    return total


def _product(grads: Tensor, factors: Tensor, valid: Tensor | None) -> Tensor:
    flat, dtype = grads.reshape(len(grads), -1), accumulator(grads.dtype)
    if valid is not None:
        flat = torch.where(valid[:, None], flat, torch.zeros((), dtype=flat.dtype, device=flat.device))
    return (flat.to(dtype).t() @ factors.to(dtype)).reshape(grads.shape[1:])


@weighted_sum.register_fake
def _(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    return grads.new_empty(grads.shape[1:], dtype=accumulator(grads.dtype))
