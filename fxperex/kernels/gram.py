"""`|g_b^T a_b|^2 = sum_{t,s} <a_t, a_s> <g_t, g_s>`, by tiles of the two Gram matrices.

The sum cancels, so it is formed in float64, which tensor cores of the GPUs meant for training have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.kernels.device import ANY_STRIDES, runs

TILE = 256  # positions on each side of a tile of the reference


@torch.library.custom_op("fxperex::gram_sq_norm", mutates_args=(), tags=ANY_STRIDES)
def gram_sq_norm(a: Tensor, g: Tensor) -> Tensor:
    """Returns the squared norms `[B]`, float64 and not below 0, of `g_b^T a_b` for `a [B,G,T,D]`
    and `g [B,G,T,P]`.
    """
    if runs(a, g):
        from fxperex.kernels.gpu.gram import launch

        return launch(a, g)
    return reference(a, g)


@gram_sq_norm.register_fake
def _(a: Tensor, g: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], dtype=torch.float64)


def reference(a: Tensor, g: Tensor) -> Tensor:
    """Returns the same by ATen: tiles on and above the diagonal, those above counted twice."""
    total = torch.zeros(a.shape[0], dtype=torch.float64, device=a.device)
    starts = range(0, a.shape[2], TILE)
    for i in starts:
        ai, gi = (v[:, :, i:i + TILE].double() for v in (a, g))
        for j in (s for s in starts if s >= i):
            aj, gj = (v[:, :, j:j + TILE].double() for v in (a, g))
            tile = torch.matmul(ai, aj.transpose(2, 3)) * torch.matmul(gi, gj.transpose(2, 3))
            total = total + tile.sum((1, 2, 3)) * (1 if i == j else 2)
    return total.clamp(min=0)
