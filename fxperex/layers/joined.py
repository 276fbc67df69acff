"""A site of several uses: their factors are joined along T, with a and g exchanged for transposed
uses.

`sum_i g_bi^T a_bi = g_b^T a_b` with `a_b`, `g_b` the uses' factors joined.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.contract import Factored, Flat, HasGram, LayerKind, Lookup
from fxperex.numerics.factors import Factor, joined_gram
from fxperex.registry import kinds
from fxperex.sites import Site, SiteValues


class Joined(Factored):
    """The layer kind of a site with parts, which keep their own kinds."""

    name = "joined"

    def claims(self, node: fx.Node, arg: int) -> bool:
        return False

    def pairs(self, values: SiteValues) -> list[tuple[Factor, Factor]]:
        """Returns the uses' factors `(a, g)` in the first use's roles; dense ones are joined."""
        lead = _roles(values.parts[0])
        dense: list[tuple[Tensor, Tensor]] = []
        pairs: list[tuple[Factor, Factor]] = []
        for part in values.parts:
            a, g = gram_kind(part.site).factors(part)
            a, g = (a, g) if _roles(part) == lead else (g, a)
            if isinstance(a, Tensor) and isinstance(g, Tensor):
                dense.append((a, g))
            else:
                pairs.append((a, g))
        if dense:
            joined = (torch.cat([pair[i] for pair in dense], 2) for i in (0, 1))
            pairs.insert(0, (next(joined), next(joined)))
        return pairs

    def factors(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        if "factors" not in values.cache:
            ((a, g),) = self.pairs(values)
            values.cache["factors"] = a, g
        return values.cache["factors"]

    def gram(self, values: SiteValues) -> Tensor:
        return joined_gram([a for a, _ in self._cached_pairs(values)])

    def out_gram(self, values: SiteValues) -> Tensor:
        return joined_gram([g for _, g in self._cached_pairs(values)])

    def _cached_pairs(self, values: SiteValues) -> list[tuple[Factor, Factor]]:
        if "pairs" not in values.cache:
            values.cache["pairs"] = self.pairs(values)
        return values.cache["pairs"]

    def fold(self, values: SiteValues, grads: Tensor) -> Tensor:
        lead = values.parts[0]
        return upright(factored(lead.site).fold(lead, grads), lead)

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        """Returns the sum over all uses; flat ones share one product, the others are added."""
        flat = [p for p in values.parts if isinstance(kind_of(p.site), Flat)]
        if len(flat) < 2:
            flat = []
        sums = [upright(gram_kind(p.site).weighted_sum(p, factors, valid)[None], p)[0]
                for p in values.parts if p not in flat]
        return added([*sums, _in_one_product(flat, factors, valid)] if flat else sums)


def kind_of(site: Site) -> LayerKind:
    """Returns the site's layer kind; that of joined uses if it has several."""
    return JOINED if site.parts else kinds()[site.kind]


def factored(site: Site) -> Factored:
    """Returns the site's layer kind, which has dense factors."""
    kind = kind_of(site)
    assert isinstance(kind, Factored)
    return kind


def gram_kind(site: Site) -> HasGram:
    """Returns the site's layer kind, which has factors and Gram matrices."""
    kind = kind_of(site)
    assert isinstance(kind, HasGram)
    return kind


def every_use(site: Site, form: type | tuple[type, ...]) -> bool:
    """Returns True if the kind of every use of the site has one of these forms."""
    return all(isinstance(kinds()[use.kind], form) for use in site.each)


def joined_tokens(values: SiteValues) -> tuple[Tensor, Tensor]:
    """Returns ids `[B,T]` and output gradients `[B,T,P]` of all uses, which are look-ups."""
    pairs = []
    for part in values.each:
        kind = kind_of(part.site)
        assert isinstance(kind, Lookup)
        pairs.append(kind.tokens(part))
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([ids for ids, _ in pairs], 1), torch.cat([g for _, g in pairs], 1)


def upright(grads: Tensor, values: SiteValues) -> Tensor:
    """Returns gradients `[N, *shape]` of a part as gradients of the joined site's tensor."""
    return grads.transpose(1, 2) if values.site.turned else grads


def over_parts(values: SiteValues, gradients: Callable[[SiteValues], Tensor]) -> Tensor:
    """Returns per-example gradients `[B, *shape]` added over the uses.

    In the order of a backward: the last use first.
    """
    return added(upright(gradients(part), part) for part in reversed(values.each))


def added(tensors: Iterable[Tensor]) -> Tensor:
    """Returns the sum of `tensors`, added one after the other."""
    return functools.reduce(torch.add, tensors)


def _in_one_product(parts: list[SiteValues], factors: Tensor, valid: Tensor) -> Tensor:
    """Returns the sum over uses with flat factors, as one product of the factors side by side."""
    lead = parts[0]
    pairs = []
    for part in parts:
        a, g = _flat(part).flat(part, factors, valid)
        pairs.append((a, g) if _roles(part) == _roles(lead) else (g, a))
    a, g = (torch.cat([pair[i] for pair in pairs], 1) for i in (0, 1))
    return upright(_flat(lead).summed(lead, a, g, valid)[None], lead)[0]


def _flat(values: SiteValues) -> Flat:
    kind = kind_of(values.site)
    assert isinstance(kind, Flat)
    return kind


def _roles(values: SiteValues) -> Any:
    layout = kind_of(values.site).layout(values.node, values.site.arg)
    return layout[::-1] if values.site.turned else layout  # type: ignore[index]


JOINED = Joined()
