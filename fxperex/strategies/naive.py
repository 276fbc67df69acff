"""The paper's `naive`: the whole step one example at a time, an ordinary backward each; also the ground truth.

It is a way to run the step, not a node's choice: `transform(..., strategy="naive")` builds a step of one row,
and its loop over the rows is the step.
"""

from __future__ import annotations

from torch import Tensor

from fxperex.registry import Cost, Site, Uses, strategy


@strategy("naive")
class Naive:
    stores = False

    def illegal(self, site: Site) -> str | None:
        return "naive runs the whole step one example at a time; it is not a node's choice"

    def cost(self, site: Site) -> Cost:
        kernel = "conv_single" if site.kind == "conv" else "mm"
        return Cost({kernel: 6.0 * site.rows * site.size}, 0.0, 0.0, 20 * site.rows)

    def stored(self, uses: Uses) -> None:
        return None

    def sq_norm(self, uses: Uses) -> Tensor:
        raise TypeError("naive has no per-node norm")

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        raise TypeError("naive has no per-node sum")
