"""The one place where anything leaves a run: a step's sum is recorded, and returned with noise.

With a folder, a keyed hash of the sum is on disk before its noise is drawn. A step that is replayed
after a crash must give the same sum: one noise on two sums could be subtracted.
"""

from __future__ import annotations

import hashlib
import hmac

import torch
from torch import Tensor

from fxperex.errors import LedgerError
from fxperex.privacy.logical_step import LogicalStep
from fxperex.privacy.noise.gaussian import Noise
from fxperex.privacy.records.facts import raw
from fxperex.privacy.records.spending import Books


class ReplayDiffers(LedgerError):
    """A replayed step summed to something else."""


class Release:
    """Turns the sums of logical steps into private means.

    on_disk: the ledger is a file, so that a step may be the replay of one before a crash.
    """

    def __init__(self, noise: Noise, books: Books, on_disk: bool) -> None:
        self.noise, self._books, self._on_disk = noise, books, on_disk

    def record(self, step: LogicalStep) -> None:
        """Records the sum of `step`; of a replay, compares it with the recorded one. Raises
        ReplayDiffers or LedgerError.
        """
        if not self._on_disk:
            return
        digest = self._digest(step)
        recorded = self._books.recorded(step.step, step.generation)
        if recorded is None:
            self._books.summed(step.step, step.generation, digest)
        elif not hmac.compare_digest(recorded, digest):
            raise ReplayDiffers("the sum of this step is not bit for bit the one that was released "
                                "before the crash; call step() and it is drawn afresh, with a "
                                "debit of its own")

    def means(self, step: LogicalStep) -> list[Tensor]:
        """Returns the private mean of each parameter's gradients, and moves an adaptive bound.

        Raises PrivacyError for a step whose noise was used.
        """
        assert step.sums is not None
        means = self.noise.release(step.sums, step.step, step.generation)
        adaptive = self.noise.mechanism.adaptive
        if adaptive is not None:
            means = [mean.mul_(adaptive.bound) for mean in means]
            below = adaptive.below(step.result.norms)
            adaptive.update(self.noise.count(below, step.step, step.generation))
        return means

    def _digest(self, step: LogicalStep) -> str:
        assert step.sums is not None
        key = self.noise.secret.key("sum", step.generation)
        digest = hashlib.blake2b(key=key, digest_size=32)
        adaptive = self.noise.mechanism.adaptive
        counts = [] if adaptive is None else [torch.tensor(adaptive.below(step.result.norms))]
        for total in [*step.sums, *counts]:
            digest.update(raw(total))
        return digest.hexdigest()
