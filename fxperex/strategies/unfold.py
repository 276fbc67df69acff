"""`grad_b = g_b^T a_b`: im2col and one batched product, stored (Opacus' default for convolutions).

On a CPU im2col of many large images is new memory in every step, at a tenth of the memory's speed:
there the product is formed a few images at a time, from patches in one buffer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fxperex.contract import Factored
from fxperex.cost_model.sites import first_touch, patches, per_example_product
from fxperex.cost_model.sizes import (
    dead_taps_bytes,
    grads_bytes,
    has_dead_taps,
    images_per_chunk,
    inputs_bytes,
    outputs_bytes,
    patches_bytes,
)
from fxperex.costs import Cost
from fxperex.layers.joined import every_use, factored
from fxperex.layers.windows import Windowed
from fxperex.registry import strategy
from fxperex.sites import Site, SiteValues, at_rows
from fxperex.strategies.stored import Stored


@strategy("unfold", order=90)
class Unfold(Stored):
    joins = True

    def illegal(self, site: Site) -> str | None:
        if site.dims is None or not every_use(site, Factored):
            return f"kind {site.kind} has no factors a, g to multiply"
        return None

    def forming(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        joined = 2 * (inputs_bytes(site) + outputs_bytes(site)) if site.parts else 0.0
        moved = d.B * dead_taps_bytes(site) + joined
        spread = first_touch(grads_bytes(site)) if has_dead_taps(site) else ()
        part = at_rows(site, images_per_chunk(site))
        pieces = -(-d.B // part.rows)
        assert part.dims is not None
        work = tuple(
            replace(w, calls=pieces)
            for w in (*patches(part), per_example_product(part, part.dims)))
        # The results of the pieces lie in one tensor.
        spread += first_touch(grads_bytes(site)) if pieces > 1 else ()
        return Cost((*work, *spread), moved, transient=patches_bytes(part) + grads_bytes(site),
                    launches=20 + 6 * len(site.parts) + 6 * pieces)

    def gradients(self, values: SiteValues) -> Tensor:
        kind, images = factored(values.site), images_per_chunk(values.site)
        if images < values.site.rows and isinstance(kind, Windowed):
            return kind.fold(values, kind.products(values, images))
        a, g = kind.factors(values)
        return kind.fold(values, torch.matmul(g.transpose(2, 3), a))
