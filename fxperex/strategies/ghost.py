"""`|g_b^T a_b|^2 = <a_b a_b^T, g_b g_b^T>`: norms from Gram matrices, the sum by one ordinary
weight gradient.

Ghost clipping (arXiv 2110.05679), mixed (2205.10683) and book-keeping (2210.00038). The Gram form
cancels, so it is formed in float64 and raised to the certified bound of
`fxperex.numerics.rounding`, never below what the weighted sum can emit. Embedding: `<a_t, a_s> =
[id_t = id_s]` needs no Gram matrix: equal tokens are added up, which is linear in T; both
roundings, of norm and sum, are certified there, and each row of the table has an S of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex import kernels
from fxperex.contract import Factored, HasGram, Lookup, Strategy
from fxperex.cost_model.sites import patches, scatter, weight_gradient
from fxperex.cost_model.sizes import (
    convolves,
    inputs_bytes,
    outputs_bytes,
    patches_bytes,
    scaling_bytes,
    spreading_bytes,
)
from fxperex.costs import Cost, Work
from fxperex.kernels.device import DTYPES
from fxperex.layers.conv import SMALL, pixel_gram
from fxperex.layers.joined import every_use, gram_kind, joined_tokens
from fxperex.numerics import rounding
from fxperex.registry import kinds, strategy
from fxperex.sites import Dims, Site, SiteValues


@strategy("ghost", order=60)
class Ghost(Strategy):
    def illegal(self, site: Site) -> str | None:
        if site.dims is None or not every_use(site, (Factored, Lookup) if site.parts else HasGram):
            return f"kind {site.kind} has no factors a, g to multiply"
        return rounding.unbounded(site)

    def cost(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        if kinds()[site.kind].sparse:
            out = outputs_bytes(site)
            moved = 12 * out + scaling_bytes(site) + float(site.size * site.dtype.itemsize)
            return Cost((scatter(site, d), *weight_gradient(site, d)), moved, 0.0, 4 * out, 60,
                        rereads=True)
        # A tiled kernel, where there is one, keeps no T x T matrix in memory and takes patches.
        tiled = kernels.unavailable(site.device) is None and site.dtype in DTYPES
        pixels = convolves(site) and pixel_gram(d) and not tiled
        # Every Gram product is (rows, width) of one operand times its transpose, in float64.
        pairs = [(d.T, d.P), (d.pixels, d.D // d.taps) if pixels else (d.T, d.D)]
        groups = d.B * d.G
        grams = tuple(Work("gram", (groups, t, width), 2.0 * groups * t**2 * width)
                      for t, width in pairs)
        square, copies = 0.0, (0.0, 0.0)
        if not tiled:  # copies in float64, one after the other
            square = 8.0 * groups * d.T**2
            copies = (2 * inputs_bytes(site), 8.0 * groups * d.T * d.P)
        moved = 3 * sum(copies) + 4 * square + scaling_bytes(site)
        moved += 2.0 * site.size * site.dtype.itemsize + spreading_bytes(site)
        if pixels:
            moved += 3 * d.taps**0.5 * sum(_shifted(d))
        unfolded = () if pixels and d.T > SMALL else patches(site)
        transient = max(copies) + (_shifting(d) if pixels else 3 * square + 3 * patches_bytes(site))
        if site.parts:  # the uses' factors side by side
            transient += inputs_bytes(site) + outputs_bytes(site)
            moved += 4 * (inputs_bytes(site) + outputs_bytes(site))
        launches = 80 + (8 * round(d.taps**0.5) if pixels else 0) + 30 * len(site.parts)
        return Cost((*unfolded, *grams, *weight_gradient(site, d)), moved, 0.0, transient, launches,
                    rereads=True)

    def sq_norm(self, values: SiteValues) -> Tensor:
        if every_use(values.site, Lookup) and not any(use.turned for use in values.site.each):
            return _of_tokens(values)
        kind = gram_kind(values.site)
        tiled = kernels.unavailable(values.site.device) is None and values.dtype in DTYPES
        if tiled and isinstance(kind, Factored) and every_use(values.site, Factored):
            a, g = kind.factors(values)
            squared = kernels.gram_sq_norm(a, g)
            inputs, outputs = (x.double().square().sum(3) for x in (a, g))
        else:
            same, outer = kind.gram(values), kind.out_gram(values)
            squared = (same * outer).sum(3).sum((1, 2)).clamp(min=0)
            inputs, outputs = (gram.diagonal(dim1=2, dim2=3).clamp(min=0) for gram in (same, outer))
        spread = rounding.spread(inputs.sqrt(), outputs.sqrt(), values.dtype)
        rho = rounding.rho(values.site, values.dtype)
        return rounding.certified(squared, spread, rho, gram=_gram_rounding(values.site))

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        return gram_kind(values.site).weighted_sum(values, factors, valid)


def _of_tokens(values: SiteValues) -> Tensor:
    """Returns certified squared norms `[B]` of a table's gradients: equal tokens are added up."""
    ids, g = joined_tokens(values)
    lengths, additions = rounding.lengths(g, 2), _equal_tokens(ids)
    rhos = (rounding.rho(values.site, g.dtype, scaled, additions) for scaled in (True, False))
    moved, read = (kernels.by_token(ids, (rho * lengths)[..., None]).sqrt() for rho in rhos)
    squared = rounding.upper_squares(kernels.by_token(ids, g), g[:1].numel(), g.dtype)
    return rounding.certified(squared, torch.ones_like(moved), moved, read)


def _equal_tokens(ids: Tensor) -> Tensor:
    """Returns how often each token's id occurs in its example, `[B, T]`: the terms of its row's
    sum.
    """
    ordered = ids.sort(dim=1).values
    end, start = (torch.searchsorted(ordered, ids.contiguous(), right=right)
                  for right in (True, False))
    return (end - start).double()


def _gram_rounding(site: Site) -> float:
    """Returns the share of `S^2` by which Gram matrices and the sum of their products are low."""
    assert site.dims is not None
    d = site.dims
    return (d.D + d.P + d.G * d.T * (2 if kernels.unavailable(site.device) else d.T) + 8) * 2.0**-53


def _shifted(d: Dims) -> tuple[float, float]:
    """Returns bytes of the pixels' matrix, its shifts added up in one dimension, and in both."""
    return 8.0 * d.B * d.G * d.T * _wide(d), 8.0 * d.B * d.G * d.T**2


def _shifting(d: Dims) -> float:
    """Returns the bytes that the pixels' matrix needs.

    Itself and its padded copy; then that copy and its sums of shifts, two at a time.
    """
    matrix, padded = 8.0 * d.B * d.G * d.pixels**2, 8.0 * d.B * d.G * _wide(d) ** 2
    once, twice = _shifted(d)
    return max(matrix + padded, padded + 2 * once, once + 2 * twice)


def _wide(d: Dims) -> float:
    """Pixels that the windows of an image reach over, its padding included."""
    out, inside = d.T**0.5, d.pixels**0.5
    stride = max(round(inside / out), 1)
    return max(inside, stride * (out - 1) + d.taps**0.5) ** 2
