"""Scale and shift of a normalisation, in one pass: `sum_n g_bn xhat_bn` and `sum_n g_bn`.

`x`, `g [B,C,N]`: `C` the affine dimension, `N` the positions; `mean`, `rstd` `[B,S]` the
statistics, of which element (c, n) uses number `n` (`per = 0`, layer and RMS norm: one per
position) or `c // per` (group and instance norm).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.kernels.device import ANY_STRIDES, runs
from fxperex.numerics.norms import sq_norm


@torch.library.custom_op("fxperex::affine_gradients", mutates_args=(), tags=ANY_STRIDES)
def affine_gradients(x: Tensor, g: Tensor, mean: Tensor, rstd: Tensor,
                     per: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (scale's gradients `[B,C]` and shift's `[B,C]`, float32 or wider; both squared norms
    `[B,2]`, float64).
    """
    if runs(x, g, mean, rstd):
        from fxperex.kernels.gpu.affine import launch

        return launch(x, g, mean, rstd, per)
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (s[:, None, :] if per == 0 else s.repeat_interleave(per, 1)[:, :, None]
                  for s in (mean, rstd))
    scale = (g.to(wide) * ((x.to(wide) - mean) * rstd)).sum(2)
    shift = g.to(wide).sum(2)
    return scale, shift, torch.stack([sq_norm(scale), sq_norm(shift)], 1)


@affine_gradients.register_fake
def _(x: Tensor, g: Tensor, mean: Tensor, rstd: Tensor, per: int) -> tuple[Tensor, Tensor, Tensor]:
    like = x.new_empty(x.shape[0], x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    return like, torch.empty_like(like), x.new_empty(x.shape[0], 2, dtype=torch.float64)
