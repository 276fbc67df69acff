"""The paper's `naive`: the whole step one example at a time, an ordinary backward each; also the
ground truth.

It is a way to run the step, not a node's choice: `transform(..., strategy="naive")` builds a step
of one row, and its loop over the rows is the step.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fxperex.cost_model.sites import grads_bytes
from fxperex.registry import Cost, Site, Uses, strategies, strategy


@strategy("naive")
class Naive:
    stores = False

    def illegal(self, site: Site) -> str | None:
        return "naive runs the whole step one example at a time; it is not a node's choice"

    def cost(self, site: Site) -> Cost:
        return replace(strategies()["multi"].cost(site), held=0.0,
                       transient=grads_bytes(site) / site.rows)

    def stored(self, uses: Uses) -> None:
        return None

    def sq_norm(self, uses: Uses) -> Tensor:
        raise TypeError("naive has no per-node norm")

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        raise TypeError("naive has no per-node sum")
