"""T = 1: `|grad_b|^2 = |a_b|^2 |g_b|^2`, the sum by one ordinary product (Goodfellow 2015, arXiv
1510.01799).
"""

from __future__ import annotations

from torch import Tensor

from fxperex.cost_model.sites import (
    inputs_bytes,
    outputs_bytes,
    patches,
    patches_bytes,
    scaling_bytes,
    spreading_bytes,
    weight_gradient,
)
from fxperex.numerics import rounding
from fxperex.numerics.norms import sq_norm
from fxperex.registry import Cost, Site, Uses, strategy
from fxperex.strategies.stored import kind_of, offers


@strategy("outer")
class Outer:
    stores = False

    def illegal(self, site: Site) -> str | None:
        if site.dims is None or not offers(site, "fold"):
            return f"kind {site.kind} has no factors a, g to multiply"
        if site.dims.T != 1:
            return f"T = {site.dims.T} positions; the product of norms holds for T = 1"
        return rounding.unbounded(site)

    def cost(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        moved = (patches_bytes(site) or inputs_bytes(site)) + outputs_bytes(site)
        moved += scaling_bytes(site) + 2.0 * site.size * site.dtype.itemsize + spreading_bytes(site)
        return Cost((*patches(site), *weight_gradient(site, d)), moved, 0.0, patches_bytes(site),
                    70, rereads=True)

    def stored(self, uses: Uses) -> None:
        return None

    def sq_norm(self, uses: Uses) -> Tensor:
        a, g = kind_of(uses.site).factors(uses)
        inputs, outputs = _squares(a), _squares(g)
        spread = rounding.spread(inputs.sqrt(), outputs.sqrt(), uses.dtype)
        squared, rho = (inputs * outputs).sum((1, 2)), rounding.rho(uses.site, uses.dtype)
        return rounding.certified(squared, spread, rho)

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        return kind_of(uses.site).weighted_sum(uses, factors, valid)


def _squares(x: Tensor) -> Tensor:
    """Returns squared lengths `[B, G, 1]` of `x [B, G, 1, N]`, float64, never low."""
    groups, count = x.shape[:2], x.shape[3]
    squared = sq_norm(x.reshape(-1, count)).reshape(*groups, 1)
    return rounding.upper_squares(squared, count, x.dtype)
