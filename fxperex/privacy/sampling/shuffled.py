"""Batches of a fixed size from a new shuffle in every epoch. Their guarantee has no amplification.

Every example is in exactly one batch of an epoch, and the batches do not depend on the data. So the
Gaussian releases of an epoch cost as much as one of them (parallel composition). This needs a
public number of examples: the relation is "zero-out" or "replace", never "add-or-remove". It is a
common error to account for shuffled batches as Poisson ones; it can understate epsilon fourfold
(arXiv 2411.10614).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxperex.errors import ConfigError
from fxperex.privacy.checks import needed, positive, whole_number
from fxperex.privacy.noise.streams import Secret
from fxperex.privacy.sampling.poisson import Sampler

if TYPE_CHECKING:
    from dp_accounting import DpEvent


class ShuffledSampler(Sampler):
    """Batches of `batch` rows in a new order every epoch; rows that do not fill a batch at its end
    are left out.

    seed, secret: where the randomness comes from; see `Secret`. Raises ConfigError.
    """

    def __init__(self, size: int, batch: int, steps: int, seed: int | None = None, *,
                 secret: Secret | None = None) -> None:
        self.size, self.steps = whole_number(size, "size", 1), whole_number(steps, "steps", 1)
        self.batch = whole_number(batch, "batch", 1)
        if self.batch > self.size:
            raise ConfigError(f"batch {batch} is above the {size} examples")
        self.expected_batch, self.secret = float(self.batch), secret or Secret(seed)
        self.per_epoch = self.size // self.batch

    def draw(self, step: int, generation: int = 0) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        keys = self.secret.streams("shuffle", generation).bits(self.size, epoch)
        rows = np.argsort(keys, kind="stable")[place * self.batch:(place + 1) * self.batch]
        return torch.from_numpy(np.sort(rows).astype(np.int64))

    def event(self, noise_multiplier: float) -> DpEvent:
        """Returns what one epoch costs: one Gaussian of `noise_multiplier`."""
        sigma = positive(noise_multiplier, "noise_multiplier")
        return needed("dp_accounting").GaussianDpEvent(sigma)

    def units(self, steps: int, first: int = 0) -> int:
        """Returns the number of epochs that the steps touch."""
        final = first + whole_number(steps, "steps") - 1
        return final // self.per_epoch - first // self.per_epoch + 1 if steps else 0

    def describe(self) -> dict[str, Any]:
        return {"sampler": "shuffled", "examples": self.size, "batch": self.batch,
                "steps per epoch": self.per_epoch, "expected batch": self.expected_batch,
                "amplified by sampling": False}

    def relations(self) -> tuple[str, ...]:
        return ("zero-out", "replace")
