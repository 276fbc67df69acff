"""Per-example weight gradients streamed through registers by a Triton kernel; no patches, no Gram
matrices.

`fused`: `|g_b^T a_b|^2` accumulated tile by tile and thrown away, the sum by one ordinary weight
gradient. On a CPU the
tiles are products that fit its cache, of linear maps alone: what is never written to memory is
never read from it. Norm and sum are rounded apart, so the norm is the certified bound of
`fxperex.numerics.rounding` for two products.
`fused_stored`: the tiles are kept, in the operands' dtype; norm and sum both read what was kept, so
any precision of the product is covered. Blueprint: FlashDP (arXiv 2507.01154).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxperex import kernels
from fxperex.config import LOW_PRECISION
from fxperex.cost_model.sites import (
    convolves,
    grads_bytes,
    inputs_bytes,
    outputs_bytes,
    per_example_product,
    scaling_bytes,
    weight_gradient,
)
from fxperex.kernels.device import DTYPES, interpreting
from fxperex.kernels.linear import STREAMED
from fxperex.layers.shapes import split
from fxperex.layers.windows import padded
from fxperex.numerics import rounding
from fxperex.registry import BatchAxis, Cost, Site, Uses, Work, strategy
from fxperex.strategies.crb import CONV
from fxperex.strategies.stored import kind_of, offers

INTERPRETED = 10**9  # launches: the interpreter is for tests, never a plan's choice


def _unsuited(site: Site) -> str | None:
    """The reason why `site` has no products to stream, or None."""
    if site.dims is None or not offers(site, "fold"):
        return f"kind {site.kind} has no factors a, g to multiply"
    if site.parts and any(convolves(use) for use in site.each):
        return f"it serves one node at a time; this tensor has {len(site.parts)} uses"
    return None


def _unavailable(site: Site) -> str | None:
    """The reason why no Triton kernel serves `site`, or None."""
    if site.dtype not in DTYPES:
        return ("the Triton kernels accumulate in float32, too little for "
                f"{str(site.dtype).removeprefix('torch.')}")
    return kernels.unavailable(site.device)


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


@strategy("fused")
class Fused:
    stores = False

    def illegal(self, site: Site) -> str | None:
        reason = _unsuited(site) or (_uncached(site) if _in_cache(site) else _unavailable(site))
        if reason is None and site.dtype in LOW_PRECISION:
            return ("the streamed products are rounded to 16 bits, which the norm does not cover: "
                    "fused_stored does")
        return reason or rounding.unbounded(site)

    def cost(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        streamed, read = per_example_product(site, d,
                                             "stream"), inputs_bytes(site) + outputs_bytes(site)
        work, moved = (streamed, *weight_gradient(site, d)), 2 * read + scaling_bytes(site)
        if not _in_cache(
                site
        # a convolution's patches overlap in memory: what is read is the input, not its |K| copies
        ):
            return Cost(work, moved, launches=_launches(), rereads=True)
        grads, joined = grads_bytes(site), read if site.parts else 0.0
        launches = 70 + 8 * math.ceil(grads / STREAMED) + 30 * len(site.parts)
        return Cost(work, moved + 4 * joined, 0.0,
                    min(grads, float(STREAMED)) + joined, launches, rereads=True)

    def stored(self, uses: Uses) -> None:
        return None

    def sq_norm(self, uses: Uses) -> Tensor:
        if not convolves(uses.site):
            a, g = kind_of(uses.site).factors(uses)
            squared = kernels.linear_sq_norm(a, g)
            inputs, outputs = rounding.lengths(a, 3), rounding.lengths(g, 3)
        else:
            x, g, shape = images(uses)
            squared = kernels.conv_sq_norm(x, g, *shape)
            output = kind_of(uses.site).ordered(uses.args[0], uses.grad)[1]
            pair = _patch_lengths(uses), rounding.lengths(output.unflatten(1, (shape.groups, -1)),
                                                          2)
            inputs, outputs = (_by_example(v, uses.out_axis, uses.site.rows) for v in pair)
        rho, read = (rounding.rho(uses.site, uses.dtype, scaled) for scaled in (True, False))
        squared = rounding.upper_squares(squared, uses.site.size, uses.dtype)
        spread = rounding.spread(inputs, outputs, uses.dtype)
        return rounding.certified(squared, spread, rho, read)

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        return kind_of(uses.site).weighted_sum(uses, factors, valid)


@strategy("fused_stored")
class FusedStored:
    stores = True

    def illegal(self, site: Site) -> str | None:
        return _unsuited(site) or _unavailable(site)

    def cost(self, site: Site) -> Cost:
        d, grads = site.dims, grads_bytes(site)
        assert d is not None
        work = per_example_product(site, d), Work("mv", (site.rows, site.size), grads)
        return Cost(work,
                    inputs_bytes(site) + outputs_bytes(site) + grads, grads, grads, _launches())

    def stored(self, uses: Uses) -> Tensor:
        return self._made(uses)[0]

    def sq_norm(self, uses: Uses) -> Tensor:
        return self._made(uses)[1]

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        return kernels.weighted_sum(self._made(uses)[0], factors, valid)

    def _made(self, uses: Uses) -> tuple[Tensor, Tensor]:
        """(per-example gradients `[B, *shape]`, their squared norms `[B]`)."""
        if "fused_stored" not in uses.cache:
            uses.cache["fused_stored"] = self._conv(uses) if convolves(
                uses.site) else self._product(uses)
        return uses.cache["fused_stored"]

    def _product(self, uses: Uses) -> tuple[Tensor, Tensor]:
        kind = kind_of(uses.site)
        grads, squared = kernels.linear_gradients(*kind.factors(uses), _precision(uses.site))
        return kind.fold(uses, grads), squared

    def _conv(self, uses: Uses) -> tuple[Tensor, Tensor]:
        x, g, shape = images(uses)
        return kernels.conv_gradients(x, g, *shape, _precision(uses.site))


def images(uses: Uses) -> tuple[Tensor, Tensor, kernels.Shape]:
    """Returns (`x [B,J,C,*S]`, `g [B,J,O,*S']`, the options) of a convolution: views unless merged
    on both sides.
    """
    kind, rows = kind_of(uses.site), uses.site.rows
    shape = kind.geometry(uses.node)
    assert uses.axes[0] is not None
    x, g = kind.ordered(*(split(v, axis, rows).flatten(1, 2)
                          for v, axis in ((uses.args[0], uses.axes[0]), (uses.grad,
                                                                         uses.out_axis))))
    return x, g, kernels.Shape(list(shape.kernel), list(shape.stride), list(shape.dilation),
                               list(shape.before), shape.groups)


def _launches() -> int:
    return INTERPRETED if interpreting() else 4


def _by_example(x: Tensor, axis: BatchAxis, rows: int) -> Tensor:
    """Returns `[B, G, T]` of `x [N, G, *S']`, an example's merged images side by side."""
    return split(x, axis, rows).movedim(3, 1).flatten(2)


def _patch_lengths(uses: Uses) -> Tensor:
    """`|a_t|` of the patches that a convolution meets, `[N, G, *S']`: a box sum of squares, no
    patches.
    """
    kind = kind_of(uses.site)
    shape, (image, _) = kind.geometry(uses.node), kind.ordered(uses.args[0], uses.grad)
    squares = image.unflatten(1, (shape.groups, -1)).float().square().sum(2)
    box = torch.ones(shape.groups, 1, *shape.kernel, dtype=squares.dtype, device=squares.device)
    lengths = CONV[len(shape.kernel)](padded(squares, shape), box, None, shape.stride, 0,
                                      shape.dilation, shape.groups).clamp(min=0).sqrt()
    assert uses.site.dims is not None
    return rounding.upper(lengths, uses.site.dims.D)
