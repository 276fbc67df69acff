"""`grad_b = g_b^T a_b`: im2col and one batched product, stored (Opacus' default for convolutions)."""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.registry import Cost, Site, Uses, strategy
from fxperex.strategies.stored import Stored, kind_of, offers
from fxperex.work import (
    folding_bytes,
    folds,
    fresh,
    grads_bytes,
    inputs_bytes,
    outputs_bytes,
    patches,
    patches_bytes,
    per_example_product,
)


@strategy("unfold")
class Unfold(Stored):
    joins = True

    def illegal(self, site: Site) -> str | None:
        if site.dims is None or not offers(site, "fold"):
            return f"kind {site.kind} has no factors a, g to multiply"
        return None

    def forming(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        joined = 2 * (inputs_bytes(site) + outputs_bytes(site)) if site.parts else 0.0
        moved = d.B * folding_bytes(site) + joined
        spread = fresh(grads_bytes(site)) if folds(site) else ()
        return Cost((*patches(site), per_example_product(site, d), *spread), moved,
                    transient=patches_bytes(site) + grads_bytes(site), launches=20 + 6 * len(site.parts))

    def gradients(self, uses: Uses) -> Tensor:
        kind = kind_of(uses.site)
        a, g = kind.factors(uses)
        return kind.fold(uses, torch.matmul(g.transpose(2, 3), a))
