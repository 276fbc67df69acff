"""Rows that stand in for data: what a compiled step is tried on and timed with before its first
use.

Values of real rows are not needed, but legal ones are: ids, labels and masks are whole rows that
were shown, and numbers lie between two rows that were shown. Every example is tried alone and
beside others, counted and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx

from fxperex.compiler.check import Check
from fxperex.compiler.out_of_memory import ended

Rows = tuple[Tensor, ...]
SMALL, LARGE = 2.0**-12, (2.0**12, 2.0**8, 2.0**4
                          )  # of ordinary rows; the largest that stays finite is taken


def stand_ins(shown: Rows, rows: int, large: float = LARGE[0], free: bool = True,
              seed: int = 0) -> Iterator[tuple[str, Rows, Tensor]]:
    """Yields (kind of rows, tensors of `rows` rows, mask `[rows]`), from rows that were shown, at
    least one.

    free: whether numbers may be any between and beyond those shown; else rows are only shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    device, half = shown[0].device, max(rows // 2, 1)
    every = torch.ones(rows, dtype=torch.bool, device=device)
    half_mask = torch.arange(rows, device=device) < half if rows > 1 else every
    ordinary = _mixed(shown, rows, generator, free)
    yield "ordinary rows", ordinary, every
    padded = tuple(
        torch.cat([x[:half], x[:1].expand(rows - half, *x.shape[1:])])
        for x in _mixed(shown, rows, generator, free))
    yield "rows of which some are masked", padded, half_mask
    yield "no row", padded, torch.zeros_like(every)
    yield "equal rows", tuple(x[:1].expand_as(x).contiguous() for x in ordinary), every
    if free and _any_real(shown):
        yield "large rows", _scaled(ordinary, large), every
        yield "small rows", _scaled(ordinary, SMALL), every
    yield "other ordinary rows", _mixed(shown, rows, generator, free), every


def tries(check: Check, shown: Rows, rows: int,
          inputs: Callable[[Rows, Tensor], list[Tensor]]) -> list[tuple[str, list[Tensor]]]:
    """Returns (kind of rows, inputs of the step) that the eager graph of `check` can run on; none
    if it cannot on any.

    inputs: what the step takes for (rows, mask).
    """
    def finite(free: bool, factor: float, kind: str) -> bool:
        _, chosen, mask = next(x for x in stand_ins(shown, rows, factor, free) if x[0] == kind)
        try:
            return all(
                bool(torch.isfinite(x).all())
                for x in check.eager(*inputs(chosen, mask))
                if x.is_floating_point())
        except Exception as error:  # rows that the model cannot take
            if ended(error):
                raise
            return False

    with torch.random.fork_rng(devices=[shown[0].device] if shown[0].is_cuda else []):
        free = not counts_with_numbers(check.graph) and finite(True, 1.0, "ordinary rows")
        large = next(
            (x for x in LARGE if free and _any_real(shown) and finite(True, x, "large rows")), 1.0)
    return [
        (kind, inputs(chosen, mask)) for kind, chosen, mask in stand_ins(shown, rows, large, free)
    ]


def counts_with_numbers(graph: fx.GraphModule) -> bool:
    """True if `graph` makes whole numbers of real ones: these may be indices, and only rows that
    were shown are legal.
    """
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and _whole(value) and "copy" in str(node.target) \
                and any(_real(n.meta.get("val")) for n in node.all_input_nodes):
            return True
    return False


def _any_real(rows: Rows) -> bool:
    return any(x.is_floating_point() for x in rows)


def _whole(value: object) -> bool:
    return isinstance(value,
                      Tensor) and not value.dtype.is_floating_point and value.dtype != torch.bool


def _real(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def _mixed(shown: Rows, rows: int, generator: torch.Generator, free: bool) -> Rows:
    """Row b of every tensor is between the same two shown rows."""
    count = len(shown[0])
    order = torch.cat(
        [torch.randperm(count, generator=generator) for _ in range(rows // count + 1)])[:rows]
    partner = torch.randint(count, (rows,), generator=generator)
    share = 0.5 + 0.5 * torch.rand(rows, generator=generator)
    return tuple(
        _between(x.detach(), order, partner, share, generator
                 ) if free and x.is_floating_point() else x.detach()[order.to(x.device)]
        for x in shown)


def _between(x: Tensor, order: Tensor, other: Tensor, share: Tensor,
             generator: torch.Generator) -> Tensor:
    one, y = x[order.to(x.device)], x[other.to(x.device)]
    share = share.to(x.device, x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    if bool((x == x.reshape(-1)[:1]).all()):  # nothing was shown but a shape
        low = x.reshape(-1)[:1].clamp(max=0) if x.numel() else 0.0
        return low + torch.rand(one.shape, generator=generator).to(x.device, x.dtype)
    # Where both are the same (infinite in a mask), so is what lies between.
    return torch.where(one == y, one * share if len(x) == 1 else one, share * one + (1 - share) * y)


def _scaled(rows: Rows, factor: float) -> Rows:
    return tuple(x * factor if x.is_floating_point() else x for x in rows)
