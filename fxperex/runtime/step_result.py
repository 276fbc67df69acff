"""What a step tells of each example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class StepResult:
    """Per-example `losses`, `norms` and clip `factors`, each `[B]` (factors `[B, K]` for K clip
    groups). Not private.
    """

    losses: Tensor
    norms: Tensor
    factors: Tensor

    def __repr__(self) -> str:
        if not len(self.losses):
            return "StepResult(no examples)"
        clipped = int((self.factors < 1).sum()) if self.factors.dim() == 1 else None
        cut = "" if clipped is None else f", {clipped} clipped"
        return (f"StepResult({len(self.losses)} examples: mean loss {self.losses.mean():.4g}, "
                f"median norm {self.norms.median():.4g}{cut}, {self.dropped} dropped)")

    @property
    def dropped(self) -> int:
        """Number of examples whose gradient was not finite or longer than 2^64; they added nothing.
        Waits for the device.
        """
        return int((~torch.isfinite(self.norms)).sum())
