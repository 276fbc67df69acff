"""`sum_b f_b grad_b` of stored per-example gradients: bound by memory, so each is read once, in its own dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.config import accumulator
from fxperex.kernels.device import runs


@torch.library.custom_op("fxperex::weighted_sum", mutates_args=())
def weighted_sum(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns `sum_b factors[b] grads[b]`, float32 or wider, for `[B, ...]`; rows with `valid` False add nothing."""
    if runs(grads):
        from fxperex.kernels.gpu.weighted import launch

        return launch(grads, factors, valid)
    dtype = accumulator(grads.dtype)
    flat = grads.reshape(len(grads), -1)
    flat = torch.where(valid[:, None], flat, torch.zeros((), dtype=flat.dtype, device=flat.device))
    return (flat.to(dtype).t() @ factors.to(dtype)).reshape(grads.shape[1:])


@weighted_sum.register_fake
def _(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    return grads.new_empty(grads.shape[1:], dtype=accumulator(grads.dtype))
