"""The second line beside the proof: replace all other examples and see whether one example's gradient moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]
FLOATS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda x: torch.full_like(x, float("nan")), "huge": lambda x: torch.full_like(x, 1e30), "zero": torch.zeros_like,
    "copy": lambda x: x.roll(-1, 0)}
# What holds no such numbers takes its own extremes.
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda x: x.amax().expand_as(x), "huge": lambda x: x.amin().expand_as(x), "zero": lambda x: x.roll(1, -1),
    "copy": FLOATS["copy"]}


def replaced(batch: Batch, keep: int, probe: str) -> Batch:
    """Returns `batch` with every example but `keep` replaced, by what `probe` says."""
    def one(x: Tensor) -> Tensor:
        made = (FLOATS if x.is_floating_point() else OTHERS)[probe](x).clone()
        made[keep] = x[keep]
        return made

    return tuple(one(x) for x in batch)


def moved(gradients: Callable[[Batch], Tensor], batch: Batch, keeps: range | None = None) -> Iterator[tuple[str, int, float]]:
    """Yields (probe, example, how far its row of `gradients(batch)` `[B, ...]` moves, relative to the row)."""
    before = gradients(batch)
    for probe in FLOATS:
        for keep in keeps or range(len(batch[0])):
            after = gradients(replaced(batch, keep, probe))
            if after.shape != before.shape:
                yield probe, keep, float("inf")
                continue
            one, two = before[keep], after[keep]
            size = float(one.norm())
            far = float((one - two).norm()) / (size or 1.0)
            yield probe, keep, far if far == far else float("inf")  # NaN moved it furthest


def flat(gradients: dict[str, Tensor]) -> Tensor:
    """Returns `[B, N]`: each example's gradients of all parameters in one row, float64."""
    return torch.cat([g.double().flatten(1) for g in gradients.values()], 1)
