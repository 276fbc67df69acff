"""A site of several uses: their factors are joined along T, with a and g exchanged for transposed
uses.

`sum_i g_bi^T a_bi = g_b^T a_b` with `a_b`, `g_b` the uses' factors joined. An embedding's `a` has
one row of
the identity per token and is never written out: `<a_t, a_s> = [id_t = id_s]`. Its product with a
dense factor is a look-up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxperex.registry import Uses, kinds


@dataclass(frozen=True)
class OneHot:
    """A factor `[B,1,T,width]` whose rows are those of the identity at `ids [B,T]`."""

    ids: Tensor
    width: int


Factor = Tensor | OneHot


def inner(x: Factor, y: Factor) -> Tensor:
    """Returns `<x_t, y_s>` `[B,G,T,S]` in float64."""
    if isinstance(x, OneHot) and isinstance(y, OneHot):
        return (x.ids[:, None, :, None] == y.ids[:, None, None, :]).double()
    if isinstance(x, OneHot):
        return inner(y, x).transpose(2, 3)
    if isinstance(y, OneHot):
        ids = y.ids[:, None, None, :].expand(*x.shape[:3], y.ids.shape[1])
        return x.double().gather(3, ids)
    wide = x.double()
    return wide @ (wide if x is y else y.double()).transpose(2, 3)


def gram(factors: list[Factor]) -> Tensor:
    """Returns the Gram matrix `[B,G,T,T]`, float64, of factors joined along T."""
    if len(factors) == 1:
        return inner(factors[0], factors[0])
    upper = {(i, j): inner(x, y)
             for i, x in enumerate(factors)
             for j, y in enumerate(factors)
             if i <= j}
    rows = [[upper[i, j] if i <= j else upper[j, i].transpose(2, 3) for j in range(len(factors))]
            for i in range(len(factors))]
    return torch.cat([torch.cat(row, 3) for row in rows], 2)


class Joined:
    """The layer kind of a site with parts; its parts keep their own."""

    name = "joined"

    def pairs(self, uses: Uses) -> list[tuple[Factor, Factor]]:
        """Returns the uses' factors `(a, g)` in the first use's roles; all dense ones are
        joined.
        """
        lead = self._roles(uses.parts[0])
        dense: list[tuple[Tensor, Tensor]] = []
        pairs: list[tuple[Factor, Factor]] = []
        for part in uses.parts:
            a, g = kinds()[part.site.kind].factors(part)
            pair = (a, g) if self._roles(part) == lead else (g, a)
            if all(isinstance(factor, Tensor) for factor in pair):
                dense.append(pair)
            else:
                pairs.append(pair)
        if dense:
            pairs.insert(0,
                         (torch.cat([a for a, _ in dense], 2), torch.cat([g for _, g in dense], 2)))
        return pairs

    def factors(self, uses: Uses) -> tuple[Tensor, Tensor]:
        if "factors" not in uses.cache:
            ((a, g),) = self.pairs(uses)
            uses.cache["factors"] = a, g
        return uses.cache["factors"]

    def gram(self, uses: Uses) -> Tensor:
        return gram([a for a, _ in self._cached_pairs(uses)])

    def out_gram(self, uses: Uses) -> Tensor:
        return gram([g for _, g in self._cached_pairs(uses)])

    def _cached_pairs(self, uses: Uses) -> list[tuple[Factor, Factor]]:
        if "pairs" not in uses.cache:
            uses.cache["pairs"] = self.pairs(uses)
        return uses.cache["pairs"]

    def tokens(self, uses: Uses) -> tuple[Tensor, Tensor]:
        """Returns ids `[B, T]` and output gradients `[B, T, P]`; all uses must be embeddings of one
        table.
        """
        tokens = [kinds()["embedding"].tokens(part) for part in uses.parts]
        return torch.cat([ids for ids, _ in tokens], 1), torch.cat([g for _, g in tokens], 1)

    def fold(self, uses: Uses, grads: Tensor) -> Tensor:
        lead = uses.parts[0]
        return upright(kinds()[lead.site.kind].fold(lead, grads), lead)

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        """Returns the sum over all uses; uses with flat factors share one product, others are
        added.
        """
        flat = [p for p in uses.parts if hasattr(kinds()[p.site.kind], "flat")]
        separate = [p for p in uses.parts if p not in flat] if len(flat) > 1 else list(uses.parts)
        sums = [
            upright(kinds()[p.site.kind].weighted_sum(p, factors, valid)[None], p)[0]
            for p in separate
        ]
        if len(flat) > 1:
            lead, pairs = flat[0], []
            for part in flat:
                a, g = kinds()[part.site.kind].flat(part, factors, valid)
                pairs.append((a, g) if self._roles(part) == self._roles(lead) else (g, a))
            a, g = (torch.cat([pair[i] for pair in pairs], 1) for i in (0, 1))
            sums.append(upright(kinds()[lead.site.kind].summed(lead, a, g, valid)[None], lead)[0])
        return added(sums)

    def _roles(self, uses: Uses) -> Any:
        layout = kinds()[uses.site.kind].layout(uses.node, uses.site.arg)
        return layout[::-1] if uses.site.turned else layout


def upright(grads: Tensor, uses: Uses) -> Tensor:
    """Returns gradients `[N, *shape]` of a part as gradients of the joined site's tensor."""
    return grads.transpose(1, 2) if uses.site.turned else grads


def over_parts(uses: Uses, gradients: Callable[[Uses], Tensor]) -> Tensor:
    """Returns per-example gradients `[B, *shape]` added over the uses, in the order of a backward:
    the last use first.
    """
    return added(upright(gradients(part), part) for part in reversed(uses.each))


def added(tensors: Iterable[Tensor]) -> Tensor:
    """Returns the sum of `tensors`, added one after the other."""
    return functools.reduce(torch.add, tensors)
