"""The values of one site, read from wherever its node was evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxperex.sites import BatchAxis, Site, SiteValues


def values_of(site: Site, node: fx.Node, read: Callable[[fx.Node], Any], axes: Mapping[str, Any],
              grads: list[Tensor | None], proved: tuple[fx.Node, fx.Node],
              rows: tuple[int, int]) -> SiteValues:
    """Returns the values of a site without parts.

    read: the value of an argument's node; grads: gradients of the node's outputs; proved: the node
    at the proof and its twin with one example more; rows: examples of the proof, and of `read`.
    """
    flat, spec = pytree.tree_flatten((node.args, node.kwargs))
    main, twin = (pytree.tree_leaves((n.args, n.kwargs)) for n in proved)

    def call(arguments: list[Any]) -> Any:
        positional, named = pytree.tree_unflatten(arguments, spec)
        return node.target(*positional, **named)  # type: ignore[operator]

    # One axis per output, None if an output has no batch: saved statistics, empty placeholders.
    out_axes = pytree.tree_leaves(axes[node.name],
                                  is_leaf=lambda s: s is None or isinstance(s, BatchAxis))
    return SiteValues(
        replace(site, rows=rows[1], dims=site.dims and replace(site.dims, B=rows[1])), node,
        args=[read(a) if isinstance(a, fx.Node) else a for a in flat],
        axes=[axes.get(a.name) if isinstance(a, fx.Node) else None for a in flat],
        call=call,
        out_axis=next(axis for axis in out_axes if axis is not None),
        grads=grads,
        out_axes=out_axes,
        single=[_of_one(m, t, rows[0]) for m, t in zip(main, twin, strict=True)])


def _of_one(main: Any, twin: Any, rows: int) -> int | None:
    """Returns a number that grows with the batch as it is for one example; None for all others."""
    return main - (twin - main) * (rows - 1) if isinstance(main, int) and main != twin else None
