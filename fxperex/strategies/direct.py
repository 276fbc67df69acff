"""The kind's own closed formula, stored: biases, affine parts of norms, bare parameters,
embeddings.

These gradients are sums over positions of the output gradient (times something known), so forming
them costs one pass over the activations and no product.
"""

from __future__ import annotations

from torch import Tensor

from fxperex.cost_model.sites import (
    fresh,
    grads_bytes,
    outputs_bytes,
    passes,
    per_example_product,
    scatter,
)
from fxperex.registry import Cost, Site, Uses, Work, strategy
from fxperex.strategies.stored import Stored, kind_of, offers


@strategy("direct")
class Direct(Stored):
    def illegal(self, site: Site) -> str | None:
        # Beside a use with a closed formula there may be a product: an embedding that is also the
        # output layer.
        closed = any(offers(use, "per_example")
                     for use in site.each) and offers(site, "per_example", "fold")
        return None if closed else f"kind {site.kind} has no closed formula"

    def forming(self, site: Site) -> Cost:
        grads, out = grads_bytes(site), outputs_bytes(site)
        work = (*_work(site), *fresh(grads)) if site.kind == "embedding" else _work(site)
        products = 2 * out if passes(site) > 1 else 0.0
        return Cost(work, passes(site) * out + 2 * grads, transient=products + grads, launches=4)

    def gradients(self, uses: Uses) -> Tensor:
        kind = kind_of(uses.site)
        if hasattr(kind, "per_example"):
            return kind.per_example(uses)
        a, g = kind.factors(uses)
        return kind.fold(uses, g.transpose(2, 3) @ a)


def _work(use: Site) -> tuple[Work, ...]:
    """Kernels of one use's gradients: tokens added up, or a product where it has no closed
    formula.
    """
    if use.kind == "embedding" and use.dims:
        return (scatter(use, use.dims),)
    return () if offers(use, "per_example") or not use.dims else (per_example_product(
        use, use.dims), )
