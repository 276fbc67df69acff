"""Sites: where a batch-carrying tensor meets a parameter, its shapes, and its values in a trace.

Letters, defined once: B examples, G groups, T positions, D inputs per group, P outputs per group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class BatchAxis:
    """Where the examples are: dimension `dim` of size `outer * B * inner`, B-major inside `inner`.

    `fresh`: all entries of `dim` are alike (zeros, random numbers) and no example reaches them, so
    any factorisation holds. `rows`: the values are the row numbers themselves (`arange(B)`).
    `fxperex.analysis.state` has the definitions.
    """

    dim: int
    outer: int = 1
    inner: int = 1
    fresh: bool = False
    rows: bool = False

    @property
    def place(self) -> tuple[int, int, int]:
        return (self.dim, self.outer, self.inner)

    def moved(self, dim: int) -> BatchAxis:
        return BatchAxis(dim, self.outer, self.inner, self.fresh, self.rows)


@dataclass(frozen=True)
class Dims:
    """Shapes of a site's factors: `a [B,G,T,D]`, `g [B,G,T,P]`, `grad_b = g_b^T a_b`.

    Of a convolution also its `taps` (D = inputs per group * taps) and the `pixels` of an example's
    one image.
    """

    B: int
    G: int
    T: int
    D: int
    P: int
    taps: int = 1
    pixels: int = 0


@dataclass(frozen=True)
class Site:
    """One use of a parameter-only tensor by a node that carries the batch.

    `name` is the parameter's qualified name (with `@2`, `@3` for further uses); `weight` the graph
    node of the parameter-only tensor; `arg` its place in the flat arguments of `node`; `isometric`:
    the pull-back to the parameters keeps norms; `alone`: no other site reaches the same parameter
    entries.

    Several uses of one tensor by nodes of one kind are one site, whose `parts` they are and whose T
    is the sum of theirs; `turned` marks a part that takes the tensor transposed. Names and places
    are those of its first part.
    """

    name: str
    node: str
    weight: str
    arg: int
    kind: str
    op: str
    params: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int
    dims: Dims | None = None
    isometric: bool = True
    alone: bool = True
    where: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parts: tuple[Site, ...] = ()
    turned: bool = False
    outputs: int = 0  # elements of the node's outputs
    no_vmap: str = ""  # why torch.func cannot differentiate the node for many examples at once

    @property
    def each(self) -> tuple[Site, ...]:
        """The uses: its parts, or itself."""
        return self.parts or (self,)

    @property
    def direct_norm(self) -> bool:
        """True if the squared norm of the parameters' gradient is the sum over sites."""
        return self.isometric and self.alone

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


def at_rows(site: Site, rows: int) -> Site:
    """Returns `site` with `rows` examples."""
    dims = site.dims and replace(site.dims, B=rows)
    parts = tuple(at_rows(part, rows) for part in site.parts)
    return replace(site, rows=rows, dims=dims, outputs=site.outputs * rows // max(site.rows, 1),
                   parts=parts)


@dataclass(eq=False)
class SiteValues:
    """Values of one site while the step graph is traced.

    node: the captured node; args: its evaluated flat arguments, weights included; axes: their
    batch axes. grads: gradients of the summed loss with respect to the node's outputs, None for
    an output that the loss does not read; out_axes: their batch axes; out_axis: that of the first
    output with a batch. call: runs the node on flat arguments. single: the arguments that are
    numbers growing with the batch, at a batch of one; None for all others. cache: what a strategy
    forms once for the site; shared: what it forms once for all sites of the node.

    A site with parts has them here too, and neither arguments nor gradients of its own.
    """

    site: Site
    node: fx.Node
    args: list[Any]
    axes: list[BatchAxis | None]
    call: Callable[..., Any]
    out_axis: BatchAxis
    grads: list[Tensor | None]
    out_axes: list[BatchAxis | None] = field(default_factory=list)
    single: list[int | None] = field(default_factory=list)
    cache: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    parts: tuple[SiteValues, ...] = ()

    @property
    def grad(self) -> Tensor:
        """The gradient of the first output."""
        assert self.grads[0] is not None
        return self.grads[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the output gradients."""
        return self.each[0].grad.dtype

    @property
    def each(self) -> tuple[SiteValues, ...]:
        """The uses: its parts, or itself."""
        return self.parts or (self,)
