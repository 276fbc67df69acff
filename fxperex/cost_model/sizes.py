"""Sizes that costs are made of: bytes of a site's tensors, of scratch memory, of extra copies."""

from __future__ import annotations

from dataclasses import replace

from fxperex.config import accumulator
from fxperex.contract import Flat
from fxperex.kernels.device import SMALL
from fxperex.layers import conv
from fxperex.layers.windows import Windowed
from fxperex.memory.workspace import FRESH, by_patches, convolution, copies, partial
from fxperex.registry import kinds
from fxperex.sites import Dims, Site

PIECE = 2**24  # bytes of patches that `unfold` forms at a time if it does not form all of them


def convolves(site: Site) -> bool:
    """True for a convolution, transposed or not: its weight gradient is a convolution too."""
    return isinstance(kinds()[site.kind], Windowed)


def taps(site: Site) -> int:
    """Elements of a convolution's kernel that ever see a pixel; 1 for all other kinds."""
    return site.dims.taps if site.dims is not None else 1


def by_convolution(site: Site) -> bool:
    """True if the ordinary weight gradient is one convolution, not a matrix product."""
    return kinds()[site.kind].by_convolution(site)


def output_passes(site: Site) -> int:
    """Times that a closed formula reads or writes a tensor of the output's size.

    A plain sum reads it once; other formulas form products first.
    """
    return kinds()[site.kind].output_passes(site)


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


def patches_bytes(site: Site) -> float:
    """Bytes of a convolution's unfolded input; 0 if unfolding is a view."""
    d = site.dims
    if d is None or d.taps == 1:
        return 0.0
    return float(d.B * d.G * d.T * d.D * site.dtype.itemsize)


def images_per_chunk(site: Site) -> int:
    """Examples whose patches are formed at a time.

    On a CPU, patches that would be new memory are formed in chunks that fill `PIECE` bytes.
    """
    d = site.dims
    in_chunks = d is not None and d.pixels and not site.parts and site.device.type == "cpu"
    if not in_chunks or patches_bytes(site) < FRESH:
        return site.rows
    fitting = int(PIECE * site.rows // patches_bytes(site))
    return max(fitting - fitting % 2, 1)  # an even number, for two threads


def sum_scratch(site: Site) -> float:
    """Bytes that a convolution copies its operands into for a weight gradient; 0 for products."""
    if not by_convolution(site) or not copies(site.device):
        return 0.0
    return convolution(inputs_bytes(site), outputs_bytes(site),
                       float(site.size * site.dtype.itemsize))


def grouped_scratch(site: Site, d: Dims) -> float:
    """Bytes that a convolution whose groups are the examples needs beside weights and result."""
    grads = grads_bytes(site)
    if not copies(site.device) or not partial(d.D // d.taps, d.P):
        return grads
    return by_patches(float(d.T * d.D * site.dtype.itemsize), grads, d.T)


def joining_bytes(site: Site) -> float:
    """Bytes needed to add up the per-example gradients of a site's uses: the total and the next."""
    return 2 * grads_bytes(site) if site.parts else 0.0


def with_all_taps(d: Dims, site: Site) -> Dims:
    """The Dims of a convolution with all taps of its kernel, dead ones (only padding) included."""
    full = site.size * d.taps // (d.G * d.P * d.D)
    return replace(d, taps=full, D=d.D // d.taps * full)


def has_dead_taps(site: Site) -> bool:
    """True for a convolution of which some taps see nothing but padding: their gradient is zero."""
    d = site.dims
    return d is not None and convolves(site) and site.size != d.G * d.P * d.D


def spreads_patches(site: Site, d: Dims) -> bool:
    """True if the sum's patches are spread over all taps, rather than the sum itself."""
    return has_dead_taps(site) and conv.patches_folded(d)


def dead_taps_bytes(site: Site) -> float:
    """Traffic of spreading one gradient of the live taps over the kernel; 0 without dead taps."""
    return 3.0 * site.size * site.dtype.itemsize if has_dead_taps(site) else 0.0


def spreading_bytes(site: Site) -> float:
    """Traffic of spreading the sum of live taps, or the patches before it, over all taps."""
    d = site.dims
    if d is not None and not by_convolution(site) and spreads_patches(site, d):
        return 3.0 * d.B * d.T * with_all_taps(d, site).D * site.dtype.itemsize
    return dead_taps_bytes(site)


def scaling_bytes(site: Site) -> float:
    """Traffic before a weight gradient: output gradients are scaled, padded rows are cleared."""
    return 5 * outputs_bytes(site) + (2 * inputs_bytes(site) if _clears(site) else 0.0)


def _clears(site: Site) -> bool:
    """False if the sum is a `kernels.product`, which looks for invalid rows itself."""
    product = isinstance(kinds()[site.kind], Flat) or (convolves(site) and not by_convolution(site))
    return not product or site.device.type != "cpu" or inputs_bytes(site) < SMALL


def summing_bytes(site: Site, held: float) -> float:
    """Bytes of the copy that a weighted sum makes of `held` bytes of stored gradients.

    Small ones are copied, and 16-bit ones are widened.
    """
    widened = held * accumulator(site.dtype).itemsize / site.dtype.itemsize
    return widened if held < SMALL or widened > held else 0.0
