"""The paper's `multi`: per node, one weight-gradient call per example, unrolled.

arXiv 1912.06015, section 3.1.
"""

from __future__ import annotations

from torch import Tensor

from fxperex.cost_model.sites import convolutions, dtype_name
from fxperex.cost_model.sizes import convolves, grads_bytes, outputs_bytes, with_all_taps
from fxperex.costs import Cost, Work
from fxperex.layers.differentiate import in_a_loop
from fxperex.registry import kinds, strategy
from fxperex.sites import Site, SiteValues
from fxperex.strategies.stored import Stored


@strategy("multi", order=70)
class Multi(Stored):
    def illegal(self, site: Site) -> str | None:
        return None

    def forming(self, site: Site) -> Cost:
        d, grads = site.dims, grads_bytes(site)
        peak, launches = 2 * grads, 8 * site.rows  # each example's, and all of them stacked
        if d is None or kinds()[site.kind].sparse:
            return Cost((), 8 * outputs_bytes(site) + 4 * grads, transient=peak, launches=launches)
        if convolves(site):
            work = convolutions(site, with_all_taps(d, site), "conv_weight", 1, site.rows * d.G)
        else:
            work = Work("mm", (d.P, d.T, d.D), 2.0 * d.T * d.D * d.P, site.rows, dtype_name(site))
        # All examples' results are held at once, and stacked: none is written where another was.
        return Cost((work, Work("fresh", (int(grads), ), 2 * grads)), 2 * grads, transient=peak,
                    launches=launches)

    def gradients(self, values: SiteValues) -> Tensor:
        return in_a_loop(values)
