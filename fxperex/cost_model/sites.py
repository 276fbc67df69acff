"""The kernels that strategies call, as Work: what one site's products, convolutions and copies
amount to.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fxperex.config import accumulator
from fxperex.contract import Flat
from fxperex.costs import Work
from fxperex.kernels.device import SMALL
from fxperex.layers import conv
from fxperex.layers.windows import MANY, Windowed
from fxperex.memory.workspace import BLOCK, FRESH, by_patches, convolution, copies, partial
from fxperex.registry import kinds
from fxperex.sites import Dims, Site

PIECE = 2**24  # bytes of patches that `unfold` forms at a time where it does not form all at once


def name_of(site: Site) -> str:
    return str(site.dtype).removeprefix("torch.")


def convolves(site: Site) -> bool:
    """True for a convolution, transposed or not: its weight gradient is a convolution too."""
    return isinstance(kinds()[site.kind], Windowed)


def taps(site: Site) -> int:
    """Number of elements of a convolution's kernel, but for those that only ever see padding; 1 for
    everything else.
    """
    return site.dims.taps if site.dims is not None else 1


def whole(d: Dims, site: Site) -> Dims:
    """Returns the Dims of a convolution with all taps of its kernel, those too that only ever see
    padding.
    """
    full = site.size * d.taps // (d.G * d.P * d.D)
    return replace(d, taps=full, D=d.D // d.taps * full)


def grads_bytes(site: Site) -> float:
    """Bytes of the site's per-example gradients."""
    return float(site.rows * site.size * site.dtype.itemsize)


def inputs_bytes(site: Site) -> float:
    """Bytes of the site's input, before any unfolding."""
    d = site.dims
    if d is None:
        return outputs_bytes(site)
    if kinds()[site.kind].sparse:
        return 8.0 * d.B * d.T
    return float(d.B * d.G * (d.pixels or d.T) * (d.D // d.taps) * site.dtype.itemsize)


def outputs_bytes(site: Site) -> float:
    """Bytes of the output gradient."""
    d = site.dims
    elements = d.B * d.G * d.T * d.P if d is not None else site.outputs
    return float(elements * site.dtype.itemsize)


def passes(site: Site) -> int:
    """Times that a closed formula reads or writes a tensor of the output's size: sums read it,
    others form products.
    """
    return kinds()[site.kind].output_passes(site)


def patches_bytes(site: Site) -> float:
    """Bytes of a convolution's unfolded input; 0 where unfolding is a view."""
    d = site.dims
    return float(d.B * d.G * d.T * d.D *
                 site.dtype.itemsize) if d is not None and d.taps > 1 else 0.0


def patches(site: Site) -> tuple[Work, ...]:
    """Work of unfolding a convolution's input; none for a kernel of one element or a linear map."""
    d = site.dims
    if d is None or taps(site) == 1:
        return ()
    return (Work("im2col", (d.B, d.G * d.D // taps(site), d.T, taps(site)), patches_bytes(site)),)


def at_once(site: Site) -> int:
    """Examples whose patches are formed at once: all, or on a CPU as many as fill `PIECE` where all
    would be new memory.
    """
    d = site.dims
    if d is None or site.parts or not d.pixels or site.device.type != "cpu" or patches_bytes(
            site) < FRESH:
        return site.rows
    fitting = int(PIECE * site.rows // patches_bytes(site))
    return max(fitting - fitting % 2, 1)  # an even number, for two threads


def per_example_product(site: Site, d: Dims, kernel: str = "") -> Work:
    """`g_b^T a_b` for every example and group, as one batched product where no other kernel is
    named.
    """
    kernel = kernel or ("bmm" if not convolves(site) else
                        "bmm_columns" if _by_columns(d) else "bmm_patches")
    return Work(kernel, (d.B * d.G, d.P, d.T, d.D), 2.0 * d.B * d.G * d.T * d.D * d.P, 1,
                name_of(site))


def _by_columns(d: Dims) -> bool:
    """True where a convolution's positions lie side by side, as pixels do: no patches, or not
    `windows.channels_last`.
    """
    return d.taps == 1 or d.G > 1 or MANY * d.taps > d.D


def convolutions(site: Site, d: Dims, kernel: str, n: int, calls: int) -> Work:
    """`calls` convolutions of `n` images (or groups) each."""
    inputs = d.D // d.taps
    return Work(kernel, (n, inputs, d.P, d.T, d.taps), 2.0 * n * inputs * d.P * d.T * d.taps, calls,
                name_of(site))


def depthwise(site: Site, d: Dims, kernel: str) -> Work:
    """One depthwise convolution of all images."""
    shape = (d.B, d.G * d.P, d.T, d.taps)
    return Work(kernel, shape, 2.0 * math.prod(shape), 1, name_of(site))


def each_by_convolution(site: Site, d: Dims, way: str) -> Work:
    """Every example's weight gradient by one convolution whose groups are the examples: `way` is
    "grouped" or "vmap".
    """
    if d.G > 1 and d.taps == d.D:
        return depthwise(site, d, f"depthwise_{way}")
    # The groups of `crb` have one input each, so only their outputs can leave blocks unfilled.
    suffix = "_partial" if partial(d.D // d.taps if way == "vmap" else BLOCK, d.P) else ""
    return convolutions(site, d, f"conv_{way}{suffix}", d.B * d.G, 1)


def by_convolution(site: Site) -> bool:
    """Returns True if the ordinary weight gradient is a convolution's own, no product."""
    return kinds()[site.kind].by_convolution(site)


def sum_scratch(site: Site) -> float:
    """Bytes that the ordinary weight gradient needs while it runs, beside its scaled operands: a
    convolution's copies of them.
    """
    if not by_convolution(site) or not copies(site.device):
        return 0.0
    return convolution(inputs_bytes(site), outputs_bytes(site),
                       float(site.size * site.dtype.itemsize))


def grouped_scratch(site: Site, d: Dims) -> float:
    """Bytes that the weight gradient of one convolution needs whose groups are the examples, beside
    weights and result.
    """
    grads = grads_bytes(site)
    if not copies(site.device) or not partial(d.D // d.taps, d.P):
        return grads
    return by_patches(float(d.T * d.D * site.dtype.itemsize), grads, d.T)


def joining_bytes(site: Site) -> float:
    """Bytes beside one use's per-example gradients while the uses' are added up: the total so far
    and the next.
    """
    return 2 * grads_bytes(site) if site.parts else 0.0


def weight_gradient(site: Site, d: Dims) -> tuple[Work, ...]:
    """The ordinary, summed weight gradient, as the layer kinds form it."""
    if not by_convolution(site):
        if kinds()[site.kind].sparse:
            return (scatter(site, d),)
        if _patches_spread(site, d):
            d = whole(d, site)
        return (Work("mm", (d.P, d.B * d.T, d.D), 2.0 * d.B * d.G * d.T * d.D * d.P, 1,
                     name_of(site)), )
    if d.G > 1 and d.taps == d.D:
        return (depthwise(site, d, "conv_depthwise"),)
    return (convolutions(site, d, "conv_weight", d.B, d.G),)


def scatter(site: Site, d: Dims) -> Work:
    """Output gradients of tokens added up by place."""
    return Work("scatter", (d.B * d.T, d.P), outputs_bytes(site), 1, name_of(site))


def folds(site: Site) -> bool:
    """True where gradients of the live taps are spread over the whole kernel."""
    d = site.dims
    return d is not None and convolves(site) and site.size != d.G * d.P * d.D


def folding_bytes(site: Site) -> float:
    """Traffic of spreading one gradient of the live taps over the whole kernel; mostly none."""
    return 3.0 * site.size * site.dtype.itemsize if folds(site) else 0.0


def spreading_bytes(site: Site) -> float:
    """Traffic of spreading a sum of live taps over the whole kernel, or the patches in front of
    it.
    """
    d = site.dims
    if d is not None and not by_convolution(site) and _patches_spread(site, d):
        return 3.0 * d.B * d.T * whole(d, site).D * site.dtype.itemsize
    return folding_bytes(site)


def _patches_spread(site: Site, d: Dims) -> bool:
    return folds(site) and conv.patches_folded(d)


def scaling_bytes(site: Site) -> float:
    """Traffic of scaling output gradients by the clip factors and of clearing padded rows, before a
    weight gradient.
    """
    return 5 * outputs_bytes(site) + (2 * inputs_bytes(site) if _clears(site) else 0.0)


def _clears(site: Site) -> bool:
    """False where the sum is a `kernels.product` that looks for invalid rows itself."""
    product = isinstance(kinds()[site.kind], Flat) or (convolves(site) and not by_convolution(site))
    return not product or site.device.type != "cpu" or inputs_bytes(site) < SMALL


def read_stored(site: Site) -> tuple[Work, ...]:
    """Norm and weighted sum of stored per-example gradients."""
    shape, grads = (site.rows, site.size), grads_bytes(site)
    return Work("norm", shape, grads), Work("mv", shape, grads)


def summing_bytes(site: Site, held: float) -> float:
    """Bytes of the copy that the weighted sum of `held` bytes of stored gradients makes: of small
    ones, or to widen 16 bits.
    """
    widened = held * accumulator(site.dtype).itemsize / site.dtype.itemsize
    return widened if held < SMALL or widened > held else 0.0


def fresh(made: float) -> tuple[Work, ...]:
    """Work of touching `made` bytes of one tensor for the first time; none where an allocator hands
    out memory again.
    """
    return (Work("fresh", (int(made),), made),) if made >= FRESH else ()
