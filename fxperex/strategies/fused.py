"""Per-example weight gradients streamed through registers by a Triton kernel; no patches, no Gram
matrices.

`fused`: `|g_b^T a_b|^2` accumulated tile by tile and thrown away, the sum by one ordinary weight
gradient. On a CPU the tiles are products that fit its cache, of linear maps alone: what is never
written to memory is never read from it. Norm and sum are rounded apart, so the norm is the
certified bound of `fxperex.numerics.rounding` for two products.
`fused_stored`: the tiles are kept, in the operands' dtype; norm and sum both read what was kept, so
any precision of the product is covered. Blueprint: FlashDP (arXiv 2507.01154).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxperex import kernels
from fxperex.config import LOW_PRECISION
from fxperex.contract import Factored, Strategy
from fxperex.cost_model.sites import per_example_product, weight_gradient
from fxperex.cost_model.sizes import (
    convolves,
    grads_bytes,
    inputs_bytes,
    outputs_bytes,
    scaling_bytes,
)
from fxperex.costs import Cost, Work
from fxperex.kernels.device import interpreting
from fxperex.kernels.linear import STREAMED
from fxperex.layers.joined import every_use, factored
from fxperex.layers.shapes import split
from fxperex.layers.windows import Windowed, padded
from fxperex.numerics import rounding
from fxperex.registry import strategy
from fxperex.sites import BatchAxis, Site, SiteValues
from fxperex.strategies.crb import CONV
from fxperex.strategies.one_pass import INTERPRETED, OnePass, no_kernel


def _unsuited(site: Site) -> str | None:
    """The reason why `site` has no products to stream, or None."""
    if site.dims is None or not every_use(site, Factored):
        return f"kind {site.kind} has no factors a, g to multiply"
    if site.parts and any(convolves(use) for use in site.each):
        return f"it serves one node at a time; this tensor has {len(site.parts)} uses"
    return None


def _in_cache(site: Site) -> bool:
    """True on a CPU, where plain products are streamed through the cache."""
    return site.device.type == "cpu" and not interpreting()


def _uncached(site: Site) -> str | None:
    """The reason why `site` has nothing to stream on a CPU, or None."""
    convolution = any(convolves(use) for use in site.each)
    return ("on a CPU a convolution's patches would be written out, which `unfold` does no slower"
            if convolution else None)


def _precision(site: Site) -> str:
    """How stored products are formed: as fast as the user allows the ordinary ones."""
    return "tf32" if site.dtype in LOW_PRECISION or rounding.rounds(site) else "ieee"


@strategy("fused", order=20)
class Fused(Strategy):
    def illegal(self, site: Site) -> str | None:
        reason = _unsuited(site) or (_uncached(site) if _in_cache(site) else no_kernel(site))
        if reason is None and site.dtype in LOW_PRECISION:
            return ("the streamed products are rounded to 16 bits, which the norm does not cover: "
                    "fused_stored does")
        return reason or rounding.unbounded(site)

    def cost(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        streamed = per_example_product(site, d, "stream")
        read = inputs_bytes(site) + outputs_bytes(site)
        work, moved = (streamed, *weight_gradient(site, d)), 2 * read + scaling_bytes(site)
        # A convolution's patches overlap in memory: what is read is the input, not its copies.
        if not _in_cache(site):
            return Cost(work, moved, launches=_launches(), rereads=True)
        grads, joined = grads_bytes(site), read if site.parts else 0.0
        launches = 70 + 8 * math.ceil(grads / STREAMED) + 30 * len(site.parts)
        return Cost(work, moved + 4 * joined, 0.0,
                    min(grads, float(STREAMED)) + joined, launches, rereads=True)

    def sq_norm(self, values: SiteValues) -> Tensor:
        kind = factored(values.site)
        if not isinstance(kind, Windowed):
            a, g = kind.factors(values)
            squared = kernels.linear_sq_norm(a, g)
            inputs, outputs = rounding.lengths(a, 3), rounding.lengths(g, 3)
        else:
            x, g, shape = images(values, kind)
            squared = kernels.conv_sq_norm(x, g, *shape)
            output = kind.ordered(values.args[0], values.grad)[1].unflatten(1, (shape.groups, -1))
            pair = _patch_lengths(values, kind), rounding.lengths(output, 2)
            inputs, outputs = (_by_example(v, values.out_axis, values.site.rows) for v in pair)
        rho, read = (rounding.rho(values.site, values.dtype, scaled) for scaled in (True, False))
        squared = rounding.upper_squares(squared, values.site.size, values.dtype)
        spread = rounding.spread(inputs, outputs, values.dtype)
        return rounding.certified(squared, spread, rho, read)

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        return factored(values.site).weighted_sum(values, factors, valid)


@strategy("fused_stored", order=30)
class FusedStored(OnePass):
    def illegal(self, site: Site) -> str | None:
        return _unsuited(site) or no_kernel(site)

    def cost(self, site: Site) -> Cost:
        d, grads = site.dims, grads_bytes(site)
        assert d is not None
        work = per_example_product(site, d), Work("mv", (site.rows, site.size), grads)
        return Cost(work,
                    inputs_bytes(site) + outputs_bytes(site) + grads, grads, grads, _launches())

    def gradients_and_squares(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        """As `OnePass`; formed once for norm and sum."""
        if "fused_stored" not in values.cache:
            values.cache["fused_stored"] = _products(values)
        return values.cache["fused_stored"]


def _products(values: SiteValues) -> tuple[Tensor, Tensor]:
    kind = factored(values.site)
    if isinstance(kind, Windowed):
        x, g, shape = images(values, kind)
        return kernels.conv_gradients(x, g, *shape, _precision(values.site))
    grads, squared = kernels.linear_gradients(*kind.factors(values), _precision(values.site))
    return kind.fold(values, grads), squared


def images(values: SiteValues, kind: Windowed) -> tuple[Tensor, Tensor, kernels.Shape]:
    """Returns (`x [B,J,C,*S]`, `g [B,J,O,*S']`, the options) of a convolution.

    Both are views unless examples are merged on both sides.
    """
    shape, rows, axis = kind.geometry(values.node), values.site.rows, values.axes[0]
    assert axis is not None
    x, g = kind.ordered(split(values.args[0], axis, rows).flatten(1, 2),
                        split(values.grad, values.out_axis, rows).flatten(1, 2))
    return x, g, kernels.Shape(list(shape.kernel), list(shape.stride), list(shape.dilation),
                               list(shape.before), shape.groups)


def _launches() -> int:
    return INTERPRETED if interpreting() else 4


def _by_example(x: Tensor, axis: BatchAxis, rows: int) -> Tensor:
    """Returns `[B, G, T]` of `x [N, G, *S']`, an example's merged images side by side."""
    return split(x, axis, rows).movedim(3, 1).flatten(2)


def _patch_lengths(values: SiteValues, kind: Windowed) -> Tensor:
    """Returns `|a_t|` of a convolution's patches, `[N, G, *S']`, from a box sum of squares."""
    shape, (image, _) = kind.geometry(values.node), kind.ordered(values.args[0], values.grad)
    squares = image.unflatten(1, (shape.groups, -1)).float().square().sum(2)
    box = torch.ones(shape.groups, 1, *shape.kernel, dtype=squares.dtype, device=squares.device)
    lengths = CONV[len(shape.kernel)](padded(squares, shape), box, None, shape.stride, 0,
                                      shape.dilation, shape.groups).clamp(min=0).sqrt()
    assert values.site.dims is not None
    return rounding.upper(lengths, values.site.dims.D)
