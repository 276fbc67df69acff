"""Moving the batch axis: what every layer kind needs of it."""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.sites import BatchAxis


def split(x: Tensor, axis: BatchAxis, rows: int) -> Tensor:
    """Returns `[B, *before, outer, inner, *after]`: the examples first, everything else in
    order.
    """
    d = axis.dim
    x = x.reshape(*x.shape[:d], axis.outer, rows, axis.inner, *x.shape[d + 1:])
    return x.movedim(d + 1, 0)


def spread(values: Tensor, axis: BatchAxis, rank: int) -> Tensor:
    """Returns one value per example `[B]` shaped to broadcast against a tensor of `rank` with
    `axis`.
    """
    rows = len(values)
    line = values.view(1, rows, 1).expand(axis.outer, rows, axis.inner).reshape(-1)
    return line.view(*(-1 if d == axis.dim else 1 for d in range(rank)))


def clean(x: Tensor, axis: BatchAxis, valid: Tensor) -> Tensor:
    """Returns `x` with the rows of invalid examples zero: 0 * inf would be NaN for everyone."""
    return torch.where(spread(valid, axis, x.dim()), x,
                       torch.zeros((), dtype=x.dtype, device=x.device))


def scaled(g: Tensor, axis: BatchAxis, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns the output gradient times each example's factor; invalid examples give exactly
    zero.
    """
    return clean(g * spread(factors, axis, g.dim()).to(g.dtype), axis, valid)


def unbroadcast(g: Tensor, axis: BatchAxis, shape: tuple[int, ...], rows: int) -> Tensor:
    """Returns `[B, *shape]`: `g` summed over every dimension along which a weight of `shape` was
    repeated.
    """
    rank, d = g.dim(), axis.dim
    sizes = (1,) * (rank - len(shape)) + tuple(shape)
    order = [*range(d), d, d, *range(d + 1, rank)]  # original dimension of each dimension behind B
    gone = [i + 1 for i, k in enumerate(order) if sizes[k] == 1]
    y = split(g, axis, rows)
    # A sum over dimensions of one element would be a copy, and a slow one.
    y = y.sum(gone) if any(y.shape[i] > 1 for i in gone) else y
    return y.reshape(rows, *shape)
