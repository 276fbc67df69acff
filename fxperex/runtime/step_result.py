"""What a step tells of each example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """Per-example `losses`, `norms` and clip `factors`, each `[B]` (factors `[B, K]` for K clip
    groups). Not private.
    """

    losses: Tensor
    norms: Tensor
    factors: Tensor

    @property
    def dropped(self) -> int:
        """Number of examples whose gradient was not finite or longer than 2^64; they added nothing.
        Waits for the device.
        """
        return int((~torch.isfinite(self.norms)).sum())
