"""`torch.func.vmap(vjp)` of one node: any operation that torch.func knows; the last resort."""

from __future__ import annotations

from torch import Tensor

from fxperex.cost_model.sites import each_by_convolution, first_touch, per_example_product
from fxperex.cost_model.sizes import (
    convolves,
    grads_bytes,
    grouped_scratch,
    output_passes,
    outputs_bytes,
    with_all_taps,
)
from fxperex.costs import Cost
from fxperex.layers.differentiate import by_vmap
from fxperex.registry import kinds, strategy
from fxperex.sites import Site, SiteValues
from fxperex.strategies.stored import Stored


@strategy("vmap", order=100)
class Vmap(Stored):
    def illegal(self, site: Site) -> str | None:
        refused = next((use.no_vmap for use in site.each if use.no_vmap), None)
        return refused and f"torch.func cannot differentiate {site.op}: {refused}"

    def forming(self, site: Site) -> Cost:
        d, grads, out = site.dims, grads_bytes(site), outputs_bytes(site)
        if d is None or kinds()[site.kind].sparse:
            return Cost(first_touch(grads), (2 + output_passes(site)) * out + 4 * grads,
                        transient=2 * out + grads, launches=8)
        if convolves(site):
            work = each_by_convolution(site, with_all_taps(d, site), "vmap")
            scratch = grouped_scratch(site, d)
        else:
            work, scratch = per_example_product(site, d), 0.0
        return Cost((work,), 4 * grads, transient=2 * grads + scratch, launches=30)

    def gradients(self, values: SiteValues) -> Tensor:
        return by_vmap(values)
