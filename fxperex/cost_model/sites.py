"""The kernels that strategies call, as Work: the products, convolutions and copies of one site."""

from __future__ import annotations

import math

from fxperex.cost_model.sizes import (
    by_convolution,
    convolves,
    grads_bytes,
    outputs_bytes,
    patches_bytes,
    spreads_patches,
    taps,
    with_all_taps,
)
from fxperex.costs import Work
from fxperex.layers.windows import MANY
from fxperex.memory.workspace import BLOCK, FRESH, partial
from fxperex.registry import kinds
from fxperex.sites import Dims, Site


def dtype_name(site: Site) -> str:
    return str(site.dtype).removeprefix("torch.")


def patches(site: Site) -> tuple[Work, ...]:
    """Work of unfolding a convolution's input; none for a kernel of one element or a linear map."""
    d = site.dims
    if d is None or taps(site) == 1:
        return ()
    return (Work("im2col", (d.B, d.G * d.D // taps(site), d.T, taps(site)), patches_bytes(site)),)


def per_example_product(site: Site, d: Dims, kernel: str = "") -> Work:
    """`g_b^T a_b` for every example and group, as one batched product unless `kernel` is named."""
    if not kernel:
        kernel = "bmm_columns" if _by_columns(d) else "bmm_patches"
        kernel = kernel if convolves(site) else "bmm"
    return Work(kernel, (d.B * d.G, d.P, d.T, d.D), 2.0 * d.B * d.G * d.T * d.D * d.P, 1,
                dtype_name(site))


def _by_columns(d: Dims) -> bool:
    """True if a convolution's positions are adjacent in memory, as pixels are.

    That holds without patches and for patches that are not `windows.channels_last`.
    """
    return d.taps == 1 or d.G > 1 or MANY * d.taps > d.D


def convolutions(site: Site, d: Dims, kernel: str, n: int, calls: int) -> Work:
    """`calls` convolutions of `n` images (or groups) each."""
    inputs = d.D // d.taps
    return Work(kernel, (n, inputs, d.P, d.T, d.taps), 2.0 * n * inputs * d.P * d.T * d.taps, calls,
                dtype_name(site))


def depthwise(site: Site, d: Dims, kernel: str) -> Work:
    """One depthwise convolution of all images."""
    shape = (d.B, d.G * d.P, d.T, d.taps)
    return Work(kernel, shape, 2.0 * math.prod(shape), 1, dtype_name(site))


def each_by_convolution(site: Site, d: Dims, way: str) -> Work:
    """Every example's weight gradient by one convolution whose groups are the examples.

    `way` is "grouped" or "vmap".
    """
    if d.G > 1 and d.taps == d.D:
        return depthwise(site, d, f"depthwise_{way}")
    # The groups of `crb` have one input each, so only their outputs can leave blocks unfilled.
    suffix = "_partial" if partial(d.D // d.taps if way == "vmap" else BLOCK, d.P) else ""
    return convolutions(site, d, f"conv_{way}{suffix}", d.B * d.G, 1)


def weight_gradient(site: Site, d: Dims) -> tuple[Work, ...]:
    """The ordinary, summed weight gradient, as the layer kinds form it."""
    if not by_convolution(site):
        if kinds()[site.kind].sparse:
            return (scatter(site, d),)
        if spreads_patches(site, d):
            d = with_all_taps(d, site)
        return (Work("mm", (d.P, d.B * d.T, d.D), 2.0 * d.B * d.G * d.T * d.D * d.P, 1,
                     dtype_name(site)), )
    if d.G > 1 and d.taps == d.D:
        return (depthwise(site, d, "conv_depthwise"),)
    return (convolutions(site, d, "conv_weight", d.B, d.G),)


def scatter(site: Site, d: Dims) -> Work:
    """Output gradients of tokens added up by place."""
    return Work("scatter", (d.B * d.T, d.P), outputs_bytes(site), 1, dtype_name(site))


def read_stored(site: Site) -> tuple[Work, ...]:
    """Norm and weighted sum of stored per-example gradients."""
    shape, grads = (site.rows, site.size), grads_bytes(site)
    return Work("norm", shape, grads), Work("mv", shape, grads)


def first_touch(size: float) -> tuple[Work, ...]:
    """Work of writing a new tensor of `size` bytes: page faults, unless it is small enough to get
    memory that the allocator has already.
    """
    return (Work("fresh", (int(size),), size),) if size >= FRESH else ()
