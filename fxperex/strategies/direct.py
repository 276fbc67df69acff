"""The kind's own closed formula, stored: biases, affine parts of norms, bare parameters,
embeddings.

These gradients are sums over positions of the output gradient (times something known), so forming
them costs one pass over the activations and no product.
"""

from __future__ import annotations

from torch import Tensor

from fxperex.contract import ClosedForm, Factored
from fxperex.cost_model.sites import first_touch, per_example_product, scatter
from fxperex.cost_model.sizes import grads_bytes, output_passes, outputs_bytes
from fxperex.costs import Cost, Work
from fxperex.layers.joined import every_use, kind_of
from fxperex.registry import kinds, strategy
from fxperex.sites import Site, SiteValues
from fxperex.strategies.stored import Stored


@strategy("direct", order=50)
class Direct(Stored):
    def illegal(self, site: Site) -> str | None:
        # Beside a use with a closed formula there may be a product: an embedding that is also the
        # output layer.
        closed = every_use(site, (ClosedForm, Factored)) and any(
            every_use(use, ClosedForm) for use in site.each)
        return None if closed else f"kind {site.kind} has no closed formula"

    def forming(self, site: Site) -> Cost:
        grads, out = grads_bytes(site), outputs_bytes(site)
        work = (*_work(site), *first_touch(grads)) if kinds()[site.kind].sparse else _work(site)
        passes = output_passes(site)
        products = 2 * out if passes > 1 else 0.0
        return Cost(work, passes * out + 2 * grads, transient=products + grads, launches=4)

    def gradients(self, values: SiteValues) -> Tensor:
        kind = kind_of(values.site)
        if isinstance(kind, ClosedForm):
            return kind.per_example(values)
        assert isinstance(kind, Factored)
        a, g = kind.factors(values)
        return kind.fold(values, g.transpose(2, 3) @ a)


def _work(use: Site) -> tuple[Work, ...]:
    """Returns the kernels of one use's gradients: tokens added up, or a product."""
    if use.dims is not None and kinds()[use.kind].sparse:
        return (scatter(use, use.dims),)
    if use.dims is None or every_use(use, ClosedForm):
        return ()
    return (per_example_product(use, use.dims),)
