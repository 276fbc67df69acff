"""The numeric checker: the float64 loop of single-example backwards, for the library's rules and
for yours.

And the second line beside the proof: probes, which replace all other examples and see whether one
example's gradient moves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class Call(nn.Module):
    """A module used through a function: `function(module, *batch)`."""

    def __init__(self, function: Callable[..., Tensor], module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *batch: Tensor) -> Tensor:
        return self.function(self.module, *batch)


class Bare(nn.Module):
    """A bare parameter of `shape` used through `function(parameter, *batch)`."""

    def __init__(self, function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(shape) * 0.5 + 1)

    def forward(self, *batch: Tensor) -> Tensor:
        return self.function(self.weight, *batch)


def loop(model: nn.Module, forward: Callable[..., Tensor], batch: tuple[Tensor, ...],
         dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Returns the truth, {parameter: `[B, *shape]`} in float64, by one backward per example.

    `forward(model, *rows)` gives the loss of a batch of one, as the user writes it. In another
    `dtype` it shows what that precision alone makes of the truth.
    """
    exact = copy.deepcopy(model).to(dtype)
    named = {n: p for n, p in exact.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {n: [] for n in named}
    for b in range(len(batch[0])):
        example = tuple(
            x[b:b + 1].to(dtype) if x.is_floating_point() else x[b:b + 1] for x in batch)
        loss = forward(exact, *example).sum()
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for (name, p), g in zip(named.items(), grads, strict=True):
            rows[name].append(torch.zeros_like(p) if g is None else g)
    return {n: torch.stack(v) if v else p.new_zeros((0, *p.shape)) for (n, v), p in
            zip(rows.items(), named.values(), strict=True)}


def clipped(truth: dict[str, Tensor], clip: float) -> tuple[dict[str, Tensor], Tensor]:
    """Returns (the clipped sum by parameter, norms `[B]`) of per-example gradients `truth`, in
    float64.
    """
    rows = len(next(iter(truth.values())))
    norms = torch.stack([
        g.reshape(rows, math.prod(g.shape[1:])).square().sum(1) for g in truth.values()
    ]).sum(0).sqrt()
    factors = (clip / norms).clamp(max=1.0)
    return {n: torch.einsum("b,b...->...", factors, g) for n, g in truth.items()}, norms


def error(found: Tensor, truth: Tensor, scale: float | None = None) -> float:
    """Returns |found - truth| / |truth| in the Euclidean norm (or over `scale`, if given and
    larger).
    """
    size = max(float(truth.double().norm()), scale or 0.0, 1e-30)
    return float((found.double() - truth.double()).norm()) / size


Batch = tuple[Tensor, ...]
FLOATS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda x: torch.full_like(x, float("nan")), "huge": lambda x: torch.full_like(x, 1e30),
    "zero": torch.zeros_like, "copy": lambda x: x.roll(-1, 0)
}
# What holds no such numbers takes its own extremes.
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda x: x.amax().expand_as(x), "huge": lambda x: x.amin().expand_as(x),
    "zero": lambda x: x.roll(1, -1), "copy": FLOATS["copy"]
}


def replaced(batch: Batch, keep: int, probe: str) -> Batch:
    """Returns `batch` with every example but `keep` replaced, by what `probe` says."""
    def one(x: Tensor) -> Tensor:
        probed = (FLOATS if x.is_floating_point() else OTHERS)[probe](x).clone()
        probed[keep] = x[keep]
        return probed

    return tuple(one(x) for x in batch)


def moved(gradients: Callable[[Batch], Tensor], batch: Batch, keeps: range | None = None,
          probes: tuple[str, ...] = tuple(FLOATS)) -> Iterator[tuple[str, int, float]]:
    """Yields (probe, example, how far its row of `gradients(batch)` `[B, ...]` moves, relative to
    the row).
    """
    before = gradients(batch)
    for probe in probes:
        for keep in keeps or range(len(batch[0])):
            after = gradients(replaced(batch, keep, probe))
            if after.shape != before.shape:
                yield probe, keep, float("inf")
                continue
            old, new = before[keep], after[keep]
            size = float(old.norm())
            far = float((old - new).norm()) / (size or 1.0)
            yield probe, keep, far if far == far else float("inf")  # NaN moved it furthest


def flat(gradients: dict[str, Tensor]) -> Tensor:
    """Returns `[B, N]`: each example's gradients of all parameters in one row, float64."""
    return torch.cat([g.double().flatten(1) for g in gradients.values()], 1)
