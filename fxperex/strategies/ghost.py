"""`|g_b^T a_b|^2 = <a_b a_b^T, g_b g_b^T>`: norms from Gram matrices, the sum by one ordinary weight gradient.

Ghost clipping (arXiv 2110.05679), mixed (2205.10683) and book-keeping (2210.00038). The Gram form cancels, so it
is formed in float64 and the result is the certified bound `n^2 + gamma S^2`, `S = sum_t |a_t||g_t|`
(`config.gamma`), never below what the weighted sum can emit. Embedding: `<a_t, a_s> = [id_t = id_s]` needs no Gram matrix:
equal tokens are added up, which is linear in T; both roundings, of norm and sum, are certified there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex import kernels
from fxperex.config import accumulator, gamma
from fxperex.kernels.device import DTYPES
from fxperex.layers.conv import SMALL, pixel_gram
from fxperex.registry import Cost, Site, Uses, strategy
from fxperex.strategies.stored import kind_of, patches_work

GRAM_ROUNDING = 2.0**-50  # float64 products and their blocked sums, in units of S^2


@strategy("ghost")
class Ghost:
    stores = False

    def illegal(self, site: Site) -> str | None:
        return None if site.dims is not None else f"kind {site.kind} has no factors a, g to multiply"

    def cost(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        positions = d.B * d.G * d.T
        if site.kind == "embedding":
            return Cost({}, 4.0 * (10 * positions * d.P + site.size), 4.0 * positions * d.P, 12)
        pixels = site.kind == "conv" and pixel_gram(d)
        pairs = d.pixels**2 * d.D / d.taps + d.T**2 * d.taps if pixels else d.T**2 * d.D
        work = {"gram": 2.0 * d.B * d.G * (pairs + d.T**2 * d.P)}
        if not pixels or d.T <= SMALL:
            work |= patches_work(site)
        kernel = "conv_weight" if site.kind == "conv" and d.T > SMALL else "mm"
        work[kernel] = 2.0 * positions * d.D * d.P
        moved = 4.0 * (positions * (6 * d.D + 8 * d.P) + 8 * d.T * positions + site.size)
        return Cost(work, moved, 4.0 * positions * d.P, 12)

    def stored(self, uses: Uses) -> None:
        return None

    def sq_norm(self, uses: Uses) -> Tensor:
        kind = kind_of(uses.site)
        if uses.site.kind == "embedding":
            ids, g = kind.tokens(uses)
            lengths = torch.linalg.vector_norm(g.to(accumulator(g.dtype)), dim=2).double().sum(1)
            return kernels.by_token(ids, g) + 4 * gamma(g.dtype) * lengths.square()
        if kernels.unavailable(uses.grad.device) is None and uses.grad.dtype in DTYPES:
            a, g = kind.factors(uses)
            squared, lengths = kernels.gram_sq_norm(a, g), a.double().square().sum(3).sqrt()
        else:
            same, g = kind.gram(uses), kind.outputs(uses).double()
            lengths = same.diagonal(dim1=2, dim2=3).clamp(min=0).sqrt()
            squared = (same * (g @ g.transpose(2, 3))).sum((1, 2, 3)).clamp(min=0)
        spread = (lengths * g.double().square().sum(3).sqrt()).sum((1, 2))
        return squared + (gamma(uses.grad.dtype) + GRAM_ROUNDING) * spread.square()

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        return kind_of(uses.site).weighted_sum(uses, factors, valid)
