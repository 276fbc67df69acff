"""The windows of a convolution: its geometry, its patches, the taps that ever see the image, the
Gram matrix of patches.

`a_t` is the patch that output position t sees: `a_t[k,c] = x[c, s t + d k - p]`, zero outside the
image; `a_t[c,k]` where there are groups, whose channels stay together, or few channels
(`channels_last`).
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxperex.contract import Factored
from fxperex.kernels.patches import patches
from fxperex.sites import SiteValues

_T = TypeVar("_T")

MANY = 8  # channels from which a patch is copied by runs of channels, rather than of positions


@dataclass(frozen=True)
class Geometry:
    """Options of one convolution, one number per spatial dimension; `before`/`after` pad each side.

    `first`: the tap of the whole kernel at which `kernel` begins (see `live`); `whole`: the whole
    kernel.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int
    first: tuple[int, ...]
    whole: tuple[int, ...]

    @property
    def even(self) -> bool:
        return self.before == self.after

    @property
    def taps(self) -> int:
        return torch.Size(self.kernel).numel()

    @property
    def pointwise(self) -> bool:
        """True where a patch is one pixel and every pixel has its patch."""
        return self.taps == 1 and set(
            self.stride) == {1} and not any(self.before) and not any(self.after)


class Windowed(Factored):
    """A factored kind whose positions are windows that slide over an image: a convolution."""

    @abstractmethod
    def geometry(self, node: fx.Node) -> Geometry:
        """Returns the windows of `node`."""

    @abstractmethod
    def ordered(self, x: _T, g: _T) -> tuple[_T, _T]:
        """Returns, of a node's input and output, (the image, what stands at the positions)."""

    @abstractmethod
    def products(self, values: SiteValues, images: int) -> Tensor:
        """Returns `g_b^T a_b` `[B,G,P,D]`, one image per example, `images` of them at a time."""

    def live(self, node: fx.Node) -> Geometry:
        """Returns the node's geometry without the taps that see padding alone."""
        image, _ = self.ordered(node.args[0].meta["val"], node.meta["val"])
        return live(self.geometry(node), tuple(image.shape[2:]))


def geometry(node: fx.Node) -> Geometry:
    """Returns the Geometry of a captured convolution's windows, `same` and unequal kernels
    included.
    """
    arguments = options(node)
    kernel = tuple(arguments["weight"].meta["val"].shape[2:])
    n = len(kernel)
    stride, dilation, padding = each(arguments["stride"], n), each(arguments["dilation"],
                                                                   n), arguments["padding"]
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)
        ]
        before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    else:
        before = after = each(padding, n)
    return Geometry(kernel, stride, dilation, before, after, arguments["groups"], (0,) * n, kernel)


def options(node: fx.Node) -> dict[str, Any]:
    """Returns every argument of a node by the name it has in the operator's schema, defaults filled
    in.
    """
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    arguments: dict[str, Any] = {s.name: s.default_value for s in schema}
    return arguments | {s.name: a
                        for s, a in zip(schema, node.args, strict=False)} | dict(node.kwargs)


def each(value: Any, n: int) -> tuple[int, ...]:
    """Returns an option for each of `n` dimensions."""
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


def live(shape: Geometry, sizes: tuple[int, ...]) -> Geometry:
    """Returns `shape` without the outer taps that see padding alone in an image of `sizes`.

    Their gradient is zero whatever the data. An image of one pixel under a padded kernel of 3 x 3
    leaves one tap of nine; larger images keep them all.
    """
    parts = [_live(shape, i, size) for i, size in enumerate(sizes)]
    kernel, before, after, first = (tuple(p[j] for p in parts) for j in range(4))
    return replace(shape, kernel=kernel, before=before, after=after, first=first)


def _live(shape: Geometry, i: int, size: int) -> tuple[int, int, int, int]:
    """(kernel, before, after, first tap) of dimension `i`, cropped; as it was where cropping would
    eat the image.
    """
    k, s, d, before, after = (v[i] for v in (shape.kernel, shape.stride, shape.dilation,
                                             shape.before, shape.after))
    outs = (size + before + after - d * (k - 1) - 1) // s + 1
    seeing = [j for j in range(k) if any(0 <= o * s + j * d - before < size for o in range(outs))]
    low, high = (seeing[0], seeing[-1] + 1) if seeing else (0, k)
    cropped = high - low, before - low * d, after - (k - high) * d, low
    return cropped if cropped[1] >= 0 and cropped[2] >= 0 else (k, before, after, 0)


def whole_kernel(grads: Tensor, shape: Geometry) -> Tensor:
    """Returns gradients `[..., *live kernel]` as `[..., *whole kernel]`, zero at the taps that see
    nothing.
    """
    widths: list[int] = []
    for k, low, full in reversed(list(zip(shape.kernel, shape.first, shape.whole, strict=True))):
        widths += [low, full - low - k]
    return F.pad(grads, widths) if any(widths) else grads


def padded(x: Tensor, shape: Geometry) -> Tensor:
    """Returns `x` with its padding made explicit."""
    widths: list[int] = []
    for before, after in zip(reversed(shape.before), reversed(shape.after), strict=True):
        widths += [before, after]
    return F.pad(x, widths)


def channels_last(channels: int, shape: Geometry) -> bool:
    """True where patches have their taps outermost; the same for all uses of a weight."""
    return shape.groups == 1 and channels >= MANY


def unfold(x: Tensor, shape: Geometry) -> Tensor:
    """Returns patches `[N, G, T, D]` of `x [N, C, *S]`."""
    interleaved = channels_last(x.shape[1], shape)
    if shape.pointwise:
        columns = x.flatten(2)
    else:
        columns = patches(x, shape.kernel, shape.stride, shape.dilation, shape.before, shape.after,
                          interleaved)
        if interleaved:
            return columns.unsqueeze(1)
    return columns.unflatten(1, (shape.groups, -1)).transpose(2, 3)


def by_channels(grads: Tensor, channels: int, shape: Geometry) -> Tensor:
    """Returns gradients `[N, G, P, D]` of patches as `[N, G P, channels, *kernel]`: a view."""
    grads = grads.flatten(1, 2)
    if channels_last(channels, shape):
        return grads.unflatten(2, (*shape.kernel, channels)).movedim(-1, 2)
    return grads.unflatten(2, (channels, *shape.kernel))


def gram(x: Tensor, shape: Geometry, outs: tuple[int, ...]) -> Tensor:
    """Returns `<a_t, a_s>` `[N, T, T]` of the patches of `x [N, C, *S]` at the positions of `outs`,
    without patches.

    `<a_t, a_s> = sum_k R[s t + d k, s s + d k]` with the pixels' own Gram matrix `R = x^T x`: one
    product over channels instead of one over channels and taps, then shifted copies of R added up,
    one dimension after the other.
    """
    n, sizes = len(shape.kernel), tuple(x.shape[2:])
    flat = x.flatten(2)
    pixels = (flat.transpose(1, 2) @ flat).reshape(len(x), *sizes, *sizes)
    widths: list[int] = []
    for before, after in reversed(list(zip(shape.before, shape.after, strict=True))):
        widths += [before, after]
    pixels = F.pad(pixels, widths * 2) if any(widths) else pixels
    for i, (k, o, s,
            d) in enumerate(zip(shape.kernel, outs, shape.stride, shape.dilation, strict=True)):
        shifted = (_every(_every(pixels, 1 + i, j * d, o, s), 1 + n + i, j * d, o, s)
                   for j in range(k))
        pixels = functools.reduce(torch.add, shifted)
    positions = torch.Size(outs).numel()
    return pixels.reshape(len(x), positions, positions)


def _every(x: Tensor, dim: int, start: int, count: int, step: int) -> Tensor:
    return torch.ops.aten.slice.Tensor(x, dim, start, start + (count - 1) * step + 1, step)
