"""Several uses of one tensor -> one site, whose positions are those of all its uses side by side.

`grad_b = sum_i g_bi^T a_bi` over the uses i is `g_b^T a_b` of the factors joined along T: a layer
called several times, a loop unrolled, every step of a recurrence, an embedding that is also the
output layer. The norm of a joined site needs no stored gradient, and a matrix may be used as it is
here and transposed there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import replace

from fxperex.analysis.origins import Origin
from fxperex.registry import kinds
from fxperex.sites import Site

MATRIX = {"PD", "DP"}  # layouts of a matrix with rows and columns for factors: either way round


def join(found: list[tuple[Site, Origin, Hashable]]) -> list[tuple[Site, Origin]]:
    """Returns (site, origin), uses of one tensor in one layout joined; `found` has each use's
    layout.
    """
    families: dict[Hashable, list[tuple[Site, Origin]]] = defaultdict(list)
    for site, origin, layout in found:
        families[_family(site, origin, layout)].append((site, origin))
    return [uses[0] if len(uses) == 1 else _joined(uses) for uses in families.values()]


def _family(site: Site, origin: Origin, layout: Hashable) -> Hashable:
    if layout in MATRIX:
        return origin.value, "matrix"
    return origin.value, origin.turned, site.kind, layout


def _joined(uses: list[tuple[Site, Origin]]) -> tuple[Site, Origin]:
    # A use with dense factors leads: strategies see its kind and its way round.
    uses = sorted(uses, key=lambda use: kinds()[use[0].kind].sparse)
    lead, origin = uses[0]
    parts = tuple(replace(s, turned=o.turned != origin.turned) for s, o in uses)
    places = list(dict.fromkeys(p.where for p in parts))
    dims = lead.dims
    if dims is not None:
        dims = replace(dims, T=sum(p.dims.T for p in parts if p.dims is not None), pixels=0)
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return replace(lead, dims=dims, parts=parts, where=f"{len(parts)} uses: "
                                                       f"{'; '.join(places[:3])}{more}"), origin
