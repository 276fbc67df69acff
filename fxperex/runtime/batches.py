"""A batch of any size -> physical batches of a fixed one, filled with rows that the model can
digest; what a batch must be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxperex.errors import ShapeError

Spec = Sequence[tuple[tuple[int, ...], torch.dtype,
                      torch.device]]  # shape of one row, dtype, device, of each tensor
Rows = tuple[Tensor, ...]


def filler(batch: Rows, spec: Spec) -> Rows:
    """Returns one row `[1, ...]` of each tensor that fills empty batches: a copy of the first of
    `batch`, or zeros without one.

    Zeros may be no legal value (labels and ids that count from 1), so a row that was shown comes
    first.
    """
    if len(batch[0]):
        return tuple(x.detach()[:1].clone() for x in batch)
    return tuple(
        torch.zeros((1, *shape), dtype=dtype, device=device) for shape, dtype, device in spec)


def ranges(batch: Rows) -> list[tuple[float, float]]:
    """Returns the smallest and the largest finite number of each tensor, (0, 1) of one that has
    none or one value alone.
    """
    limits = []
    for x in batch:
        y = x.detach().reshape(-1)
        y = y[torch.isfinite(y)] if y.dtype.is_floating_point else y
        low, high = (float(y.amin()),
                     float(y.amax())) if y.numel() and not y.is_complex() else (0.0, 1.0)
        limits.append((min(low, 0.0),
                       max(high, 1.0)) if low == high and x.dtype.is_floating_point else (low,
                                                                                          high))
    return limits


def physical(batch: Rows, rows: int, empty: Rows) -> list[tuple[Rows, Tensor, int]]:
    """Returns physical batches of `rows`: (padded tensors, mask `[rows]`, rows that count). An
    empty batch is one, all mask.

    empty: one row of each tensor, as of `filler`; a batch that has rows repeats its own first one.
    """
    total, pieces = len(batch[0]), []
    source = batch if total else empty
    for start in range(0, max(total, 1), rows):
        padded = tuple(
            _pad(x[start:start + rows], rows, like[:1])
            for x, like in zip(batch, source, strict=True))
        count = min(total - start, rows)
        mask = torch.arange(rows, device=padded[0].device) < count
        pieces.append((padded, mask, count))
    return pieces


def _pad(x: Tensor, rows: int, row: Tensor) -> Tensor:
    return x if len(x) == rows else torch.cat([x, row.expand(rows - len(x), *x.shape[1:])])


def check(batch: Sequence[object], spec: Spec, names: Sequence[str]) -> None:
    """Raises ShapeError unless `batch` is one tensor for each of `spec`, all with the same number
    of rows. names: what a message calls each.
    """
    if len(batch) != len(spec):
        raise ShapeError(f"step takes {len(spec)} tensors, as at transform; got {len(batch)}")
    for name, x, (shape, dtype, device) in zip(names, batch, spec, strict=True):
        if not isinstance(x, Tensor):
            raise ShapeError(f"{name} must be a tensor with the examples first; got "
                             f"{type(x).__name__}")
        check_dense(x, name)
        if x.dim() == 0:
            raise ShapeError(f"{name} must be a tensor with the examples first; got "
                             "one without dimensions")
        if tuple(x.shape[1:]) != shape or x.dtype != dtype or not same_device(x.device, device):
            raise ShapeError(f"{name} is {told(x.shape[1:], x.dtype, x.device)}; this step "
                             f"was made for {told(shape, dtype, device)}. Transform again for "
                             "another")
    if len({len(x) for x in batch}) != 1:
        raise ShapeError("batch tensors have different numbers of examples: "
                         f"{[len(x) for x in batch]}")


def check_dense(x: Tensor, name: str) -> None:
    """Raises ShapeError for a sparse, nested or quantised tensor."""
    if x.is_nested or x.layout != torch.strided or x.is_quantized:
        layout = str(x.layout).removeprefix("torch.")
        kind = "nested" if x.is_nested else "quantised" if x.is_quantized else layout
        raise ShapeError(f"{name} is a {kind} tensor, in which an example has no fixed place; "
                         "give a dense one (to_dense(), dequantize(), to_padded_tensor())")


def same_device(one: torch.device, two: torch.device) -> bool:
    """True for the same device; "cuda" without a number stands for any one GPU."""
    return one.type == two.type and (one.index == two.index or None in (one.index, two.index))


def told(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> str:
    """Returns what a message says of a tensor whose rows have that shape."""
    return f"[B, {', '.join(map(str, shape))}] {str(dtype).removeprefix('torch.')} on {device}"
