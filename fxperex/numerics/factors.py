"""Factors `[B,G,T,N]` of per-example gradients, and their Gram matrices in float64.

A look-up's factor has one row of the identity per position and is never written out:
`<x_t, x_s> = [id_t = id_s]`. Its product with a dense factor is a look-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OneHot:
    """A factor `[B,1,T,width]` whose rows are those of the identity at `ids [B,T]`."""

    ids: Tensor
    width: int


Factor = Tensor | OneHot


def inner(x: Factor, y: Factor) -> Tensor:
    """Returns `<x_t, y_s>` `[B,G,T,S]` in float64."""
    if isinstance(x, OneHot) and isinstance(y, OneHot):
        return (x.ids[:, None, :, None] == y.ids[:, None, None, :]).double()
    if isinstance(x, OneHot):
        return inner(y, x).transpose(2, 3)
    if isinstance(y, OneHot):
        ids = y.ids[:, None, None, :].expand(*x.shape[:3], y.ids.shape[1])
        return x.double().gather(3, ids)
    wide = x.double()
    return wide @ (wide if x is y else y.double()).transpose(2, 3)


def joined_gram(factors: list[Factor]) -> Tensor:
    """Returns the Gram matrix `[B,G,T,T]`, float64, of factors joined along T."""
    if len(factors) == 1:
        return inner(factors[0], factors[0])
    upper = {(i, j): inner(x, y)
             for i, x in enumerate(factors)
             for j, y in enumerate(factors)
             if i <= j}
    rows = [[upper[i, j] if i <= j else upper[j, i].transpose(2, 3) for j in range(len(factors))]
            for i in range(len(factors))]
    return torch.cat([torch.cat(row, 3) for row in rows], 2)
