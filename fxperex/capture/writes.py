"""Writes that functionalisation leaves in a form without a derivative or a fixed size.

Before: `aten.copy(x, y)`, what a write of y leaves in x. After: y, spread over x. Before:
`x[mask] = 0`, an `index_put` at as many places as the mask has. After: `where(mask, 0, x)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    # Contiguous, as what was written into is: later lines may view it.
    written = source.to(target.device, target.dtype).expand_as(target)
    return written.clone(memory_format=torch.contiguous_format)


def _masked(x: Tensor, indices: list[Tensor | None], values: Tensor,
            accumulate: bool = False) -> Any:
    """`x[:, mask] = value` -> where, if the value is the same at every place."""
    places = [(d, index) for d, index in enumerate(indices) if index is not None]
    before, mask = places[0]
    if len(places) != 1 or mask.dtype not in (torch.bool, torch.uint8):
        return NotImplemented
    after = x.dim() - before - mask.dim()
    if values.dim() > after:
        # [1, D] for `x[mask]` of rows D: one for all places, which are one dimension.
        if values.dim() > after + 1 or values.shape[0] != 1:
            return NotImplemented
        values = values.squeeze(0)
    values = values.to(x.device, x.dtype)
    shown = mask.bool().reshape(*mask.shape, *(1 for _ in range(after)))
    return torch.where(shown, x + values if accumulate else values, x)


WRITES: dict[Any, Callable[..., Any]] = {
    aten.copy.default: _copied,
    aten.index_put.default: _masked,
}
