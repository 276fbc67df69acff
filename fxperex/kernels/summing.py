"""`g^T a` over the positions of all examples: a weighted sum, in which invalid examples have zeros.

Zero times a number that is not finite is NaN, which would reach all. On a CPU the product checks
whether any example is invalid; if none is, it copies nothing. On a GPU a check would wait for the
device, so rows of invalid examples are always cleared (`layers.shapes.clean`) before an ordinary
product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.kernels.device import SMALL

FUSED = 2**20  # bytes of an input that Inductor clears in passing


def looks(x: Tensor) -> bool:
    """True for an input `x` that need not be cleared, because `product` checks it itself."""
    return x.device.type == "cpu" and x.nbytes >= SMALL


def product(g: Tensor, a: Tensor, valid: Tensor) -> Tensor:
    """Returns `g^T a` `[..., P, D]` of `g [..., N, P]` and `a [..., N, D]`. An invalid example has
    zeros in `g`.
    """
    return checked_product(g, a, valid) if looks(a) or looks(g) else g.mT @ a


@torch.library.custom_op("fxperex::product", mutates_args=())
def checked_product(g: Tensor, a: Tensor, valid: Tensor) -> Tensor:
    """Returns `g^T a`; if an example is invalid, numbers that are not finite count as zero."""
    if not bool(valid.all()):  # mostly a padded batch, for which alone nothing is copied
        g, a = (v if bool(v.isfinite().all()) else v.nan_to_num(0.0, 0.0, 0.0) for v in (g, a))
    return g.mT @ a


@checked_product.register_fake
def _(g: Tensor, a: Tensor, valid: Tensor) -> Tensor:
    return g.new_empty(*g.shape[:-2], g.shape[-1], a.shape[-1])


def plainly(g: Tensor, a: Tensor, valid: Tensor) -> Tensor | None:
    """Returns `checked_product` by operations that a compiler can fuse, or None if their cleared
    copies would cost more than that saves.
    """
    if max(g.nbytes, a.nbytes) >= FUSED:
        return None
    g, a = (torch.where(valid.all(), v, v.nan_to_num(0.0, 0.0, 0.0)) for v in (g, a))
    return g.mT @ a
