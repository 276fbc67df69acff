"""One use of a module as a suite offers it, and the two losses that make a gradient of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain(module: nn.Module, *batch: Tensor) -> Any:
    return module(*batch)


def curved(out: Tensor) -> Tensor:
    """A loss `[B]` whose output gradients differ by element and example."""
    weights = torch.linspace(0.5, 2.0, out.shape[1:].numel(),
                             dtype=out.dtype).reshape(out.shape[1:])
    return ((out * weights).sin() + out**2 / 3).flatten(1).sum(1)


def absolute(out: Tensor) -> Tensor:
    """The mean distance from zero, over batch and elements: the loss of the Opacus suite."""
    return F.l1_loss(out, torch.zeros_like(out))


@dataclass(frozen=True)
class Case:
    """`call(module, *batch)` gives the output; its first tensor has the examples in dimension
    `out`.

    `batch` has the examples first. `mixes`: the module mixes examples as it stands, so only a
    refusal is right.
    """

    kind: str
    module: nn.Module
    batch: tuple[Tensor, ...]
    call: Callable[..., Any] = plain
    out: int = 0
    loss: Callable[[Tensor], Tensor] = curved
    mixes: bool = False
    note: str = ""

    def forward(self, module: nn.Module, *batch: Tensor) -> Tensor:
        out = self.call(module, *batch)
        out = out[0] if isinstance(out, tuple) else out
        return self.loss(out.movedim(self.out, 0))

    def __str__(self) -> str:
        shapes = ", ".join(str(list(x.shape)) for x in self.batch)
        return f"{self.kind}: {' '.join(str(self.module).split())} of {shapes} {self.note}".rstrip()
