"""`grad_b = g_b^T a_b`: im2col and one batched product, stored (Opacus' default for convolutions)."""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.registry import Cost, Site, Uses, strategy
from fxperex.strategies.stored import Stored, kind_of, offers, patches_work, stored_work


@strategy("unfold")
class Unfold(Stored):
    joins = True

    def illegal(self, site: Site) -> str | None:
        if site.dims is None or not offers(site, "fold"):
            return f"kind {site.kind} has no factors a, g to multiply"
        return None

    def cost(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        grads = 4.0 * d.B * d.G * d.P * d.D
        work = {"bmm": 2.0 * d.B * d.G * d.T * d.D * d.P, **patches_work(site), **stored_work(grads)}
        return Cost(work, 4.0 * d.B * d.G * d.T * (d.D + d.P) + 3 * grads, grads, 6)

    def gradients(self, uses: Uses) -> Tensor:
        kind = kind_of(uses.site)
        a, g = kind.factors(uses)
        return kind.fold(uses, torch.matmul(g.transpose(2, 3), a))
