"""T = 1: `|grad_b|^2 = |a_b|^2 |g_b|^2`, the sum by one ordinary product (Goodfellow 2015, arXiv
1510.01799).
"""

from __future__ import annotations

from torch import Tensor

from fxperex.contract import Factored, Strategy
from fxperex.cost_model.sites import patches, weight_gradient
from fxperex.cost_model.sizes import (
    inputs_bytes,
    outputs_bytes,
    patches_bytes,
    scaling_bytes,
    spreading_bytes,
)
from fxperex.costs import Cost
from fxperex.layers.joined import every_use, factored
from fxperex.numerics import rounding
from fxperex.numerics.norms import sq_norm
from fxperex.registry import strategy
from fxperex.sites import Site, SiteValues


@strategy("outer", order=80)
class Outer(Strategy):
    def illegal(self, site: Site) -> str | None:
        if site.dims is None or not every_use(site, Factored):
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

    def sq_norm(self, values: SiteValues) -> Tensor:
        a, g = factored(values.site).factors(values)
        inputs, outputs = _squares(a), _squares(g)
        spread = rounding.spread(inputs.sqrt(), outputs.sqrt(), values.dtype)
        squared, rho = (inputs * outputs).sum((1, 2)), rounding.rho(values.site, values.dtype)
        return rounding.certified(squared, spread, rho)

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        return factored(values.site).weighted_sum(values, factors, valid)


def _squares(x: Tensor) -> Tensor:
    """Returns squared lengths `[B, G, 1]` of `x [B, G, 1, N]`, float64, never low."""
    groups, count = x.shape[:2], x.shape[3]
    squared = sq_norm(x.reshape(-1, count)).reshape(*groups, 1)
    return rounding.upper_squares(squared, count, x.dtype)
