"""The one place where anything leaves a run: a step's sum is recorded, and returned with noise.

With a folder, a keyed hash of the sum is on disk before its noise is drawn. A step that is replayed
after a crash must give the same sum: one noise on two sums could be subtracted.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import torch
from torch import Tensor

from fxperex.errors import LedgerError
from fxperex.privacy.logical_step import LogicalStep
from fxperex.privacy.noise.gaussian import Noise
from fxperex.privacy.records.spending import Books
from fxperex.ranks import ALONE, Ranks
from fxperex.ranks.totals import Totals


class ReplayDiffers(LedgerError):
    """A replayed step summed to something else."""


class Release:
    """Turns the sums of logical steps into private means.

    on_disk: the ledger is a file, so that a step may be the replay of one before a crash. dtypes:
    of the parameters. ranks: who has a share of the sums.
    """

    def __init__(self, noise: Noise, books: Books, on_disk: bool, dtypes: Sequence[torch.dtype],
                 ranks: Ranks = ALONE) -> None:
        self.noise, self._books, self._on_disk = noise, books, on_disk
        self._dtypes, self._ranks = dtypes, ranks

    def record(self, step: LogicalStep) -> Totals:
        """Returns the sums of `step` over all ranks, recorded; of a replay, compared with the
        recorded ones. Raises ReplayDiffers or LedgerError.
        """
        assert step.sums is not None
        totals = self._ranks.totals(step.sums, self._dtypes)
        if not self._on_disk:
            return totals
        digest = self._digest(step, totals)
        recorded = self._books.recorded(step.step, step.generation)
        if recorded is None:
            self._books.summed(step.step, step.generation, digest)
        elif not hmac.compare_digest(recorded, digest):
            raise ReplayDiffers("the sum of this step is not bit for bit the one that was released "
                                "before the crash; call step() and it is drawn afresh, with a "
                                "debit of its own")
        return totals

    def means(self, step: LogicalStep, totals: Totals) -> list[Tensor]:
        """Returns the private mean of each parameter's gradients, and moves an adaptive bound.

        Each rank adds the noise of its part of `totals`. Raises PrivacyError for a step whose noise
        was used.
        """
        means = self.noise.release_parts(totals.parts, step.step, step.generation)
        adaptive = self.noise.mechanism.adaptive
        if adaptive is not None:
            means = [mean.mul_(adaptive.bound) for mean in means]
            below = self._ranks.total(adaptive.below(step.result.norms))
            adaptive.update(self.noise.count(below, step.step, step.generation))
        return totals.gathered(means)

    def _digest(self, step: LogicalStep, totals: Totals) -> str:
        key = self.noise.secret.key("sum", step.generation)
        adaptive = self.noise.mechanism.adaptive
        below = 0.0 if adaptive is None else adaptive.below(step.result.norms)
        counted = str(self._ranks.total(below)).encode()
        return hashlib.blake2b(totals.digest(key) + counted, key=key, digest_size=32).hexdigest()
