"""Strategies whose Triton kernel gives per-example gradients and their squared norms in one pass
over the operands: what is stored is what norm and sum read.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from fxperex import kernels
from fxperex.contract import Strategy
from fxperex.kernels.device import DTYPES
from fxperex.sites import Site, SiteValues

INTERPRETED = 10**9  # launches: the interpreter is for tests, never a plan's choice


class OnePass(Strategy):
    """A strategy that is its gradients and their squared norms."""

    stores = True

    @abstractmethod
    def gradients_and_squares(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        """Returns (per-example gradients `[B, *shape]`, their squared norms `[B]`)."""

    def stored(self, values: SiteValues) -> Tensor:
        return self.gradients_and_squares(values)[0]

    def sq_norm(self, values: SiteValues) -> Tensor:
        return self.gradients_and_squares(values)[1]

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        return kernels.weighted_sum(self.gradients_and_squares(values)[0], factors, valid)


def no_kernel(site: Site) -> str | None:
    """Returns the reason why no Triton kernel serves `site`, or None."""
    if site.dtype not in DTYPES:
        return ("the Triton kernels accumulate in float32, too little for "
                f"{str(site.dtype).removeprefix('torch.')}")
    return kernels.unavailable(site.device)
