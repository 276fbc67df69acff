"""The kind's own closed formula, stored: biases, affine parts of norms, bare parameters, embeddings.

These gradients are sums over positions of the output gradient (times something known), so forming them
costs one pass over the activations and no product.
"""

from __future__ import annotations

from torch import Tensor

from fxperex.registry import Cost, Site, Uses, strategy
from fxperex.strategies.stored import Stored, kind_of
from fxperex.work import grads_bytes, outputs_bytes, read_stored


@strategy("direct")
class Direct(Stored):
    def illegal(self, site: Site) -> str | None:
        return None if hasattr(kind_of(site), "per_example") else f"kind {site.kind} has no closed formula"

    def cost(self, site: Site) -> Cost:
        grads = grads_bytes(site)
        return Cost(read_stored(site), 4 * outputs_bytes(site) + 4 * grads, grads, 2 * outputs_bytes(site) + grads, 40)

    def gradients(self, uses: Uses) -> Tensor:
        return kind_of(uses.site).per_example(uses)
