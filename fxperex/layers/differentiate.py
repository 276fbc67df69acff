"""Any node with a parameter, differentiated one example at a time: by `vmap`, or in a loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxperex.layers.shapes import split
from fxperex.registry import kinds
from fxperex.sites import BatchAxis, SiteValues


def by_vmap(values: SiteValues) -> Tensor:
    """Returns per-example gradients `[B, *shape]` by `torch.func.vmap(vjp)` of the node.

    Raises what torch.func raises for an operation that it cannot take.
    """
    site = values.site
    moving = {i: axis for i, axis in enumerate(values.axes)
              if axis is not None and isinstance(values.args[i], Tensor)}
    outs = {i: axis for i, axis in enumerate(values.out_axes)
            if axis is not None and values.grads[i] is not None}
    inputs = [split(values.args[i].detach(), axis, site.rows) for i, axis in moving.items()]
    grads = [split(values.grads[i], axis, site.rows) for i, axis in outs.items()]
    weight = values.args[site.arg].detach()

    def of_row(rows: list[Tensor], row_grads: list[Tensor]) -> Tensor:
        arguments = at_single(values, values.args)
        for (i, axis), row in zip(moving.items(), rows, strict=True):
            arguments[i] = as_one(row, axis)

        def run(w: Tensor) -> list[Tensor]:
            outputs = _outputs(values, arguments, w)
            return [outputs[i] for i in outs]

        pull = torch.func.vjp(run, weight)[1]
        cotangents = zip(row_grads, outs.values(), strict=True)
        return pull([as_one(g, axis) for g, axis in cotangents])[0]

    return torch.func.vmap(of_row, randomness="different")(inputs, grads)


def in_a_loop(values: SiteValues) -> Tensor:
    """Returns per-example gradients `[B, *shape]`, by one backward of the node for each example."""
    return torch.stack([_of_example(values, b) for b in range(values.site.rows)])


def _of_example(values: SiteValues, b: int) -> Tensor:
    rows = values.site.rows
    pairs = zip(values.args, values.axes, strict=True)
    arguments = at_single(values, [_example(a, axis, rows, b) for a, axis in pairs])
    with torch.enable_grad():
        weight = values.args[values.site.arg].detach().requires_grad_()
        outputs = zip(_outputs(values, arguments, weight), values.grads, values.out_axes,
                      strict=True)
        read = [(y, _example(g, axis, rows, b)) for y, g, axis in outputs if g is not None]
        return torch.autograd.grad([y for y, _ in read], weight, [g for _, g in read])[0]


def at_single(values: SiteValues, arguments: list[Any]) -> list[Any]:
    """Returns `arguments` with the numbers that grow with the batch as of a batch of one."""
    pairs = zip(values.single, arguments, strict=True)
    return [single if isinstance(single, int) else a for single, a in pairs]


def as_one(row: Tensor, axis: BatchAxis) -> Tensor:
    """Returns `[*before, outer, inner, *after]` as the tensor of a batch of one."""
    d = axis.dim
    return row.reshape(*row.shape[:d], axis.outer * axis.inner, *row.shape[d + 2:])


def _outputs(values: SiteValues, arguments: list[Any], weight: Tensor) -> list[Tensor]:
    result = kinds()[values.site.kind].example_output(values, arguments, weight)
    return [result] if isinstance(result, Tensor) else list(result)


def _example(value: Any, axis: BatchAxis | None, rows: int, b: int) -> Any:
    """Returns one example's slice, as a batch of one; what carries no batch stays as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value if axis is None else as_one(split(value, axis, rows)[b], axis)
