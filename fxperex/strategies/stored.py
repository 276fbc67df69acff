"""What strategies that store per-example gradients share: their norm and weighted sum read the
store.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxperex import kernels
from fxperex.config import LOW_PRECISION
from fxperex.cost_model.sites import grads_bytes, joining_bytes, read_stored
from fxperex.layers.joined import Joined, over_parts
from fxperex.numerics.norms import sq_norm
from fxperex.registry import Cost, Site, Uses, kinds, strategies

READING = 12  # operations of norm and weighted sum
SMALL = 2**16  # bytes of a site's per-example gradients that are put beside others'


class Stored:
    """Base of the strategies that form per-example gradients once and keep them.

    `joins`: `gradients` takes a site of several uses whole; otherwise it is asked for each use, and
    they are added. `forming(site)` is the Cost of that alone; norm and weighted sum read the store
    at the same price for all.
    """

    stores = True
    joins = False

    def forming(self, site: Site) -> Cost:
        raise TypeError("a stored strategy defines forming()")

    def cost(self, site: Site) -> Cost:
        grads, uses = grads_bytes(site), (site,) if self.joins else site.each
        costs = [self.forming(use) for use in uses]
        work = (*(w for c in costs for w in c.work), *read_stored(site))
        # Every use but the first is added to those before it.
        moved = 3 * grads * (len(costs) - 1) + sum(c.bytes for c in costs)
        transient = max(*(c.transient for c in costs),
                        grads + joining_bytes(site) if len(costs) > 1 else 0.0)
        return Cost(work, moved, grads, transient, sum(c.launches for c in costs) + READING)

    def gradients(self, uses: Uses) -> Tensor:
        raise TypeError("a stored strategy defines gradients()")

    def stored(self, uses: Uses) -> Tensor:
        key = type(self).__name__
        if key not in uses.cache:
            uses.cache[key] = self.gradients(uses) if self.joins else over_parts(
                uses, self.gradients)
        return uses.cache[key]

    def sq_norm(self, uses: Uses) -> Tensor:
        return sq_norm(self.stored(uses))

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        return kernels.by_factors(self.stored(uses), factors, valid)


def small(site: Site, strategy: str) -> bool:
    """True where the step puts the site's stored gradients side by side with others': one norm and
    one sum serve them all.

    Strategies that are not `Stored` form the norm as they form the gradients.
    """
    stored = isinstance(strategies()[strategy], Stored) and site.dtype not in LOW_PRECISION
    return stored and site.direct_norm and grads_bytes(site) <= SMALL


def kind_of(site: Site) -> Any:
    """Returns the site's layer kind; that of joined uses where it has several."""
    return JOINED if site.parts else kinds()[site.kind]


def offers(site: Site, *whats: str) -> bool:
    """True if the kind of every use of the site has one of these methods."""
    return all(any(hasattr(kinds()[use.kind], what) for what in whats) for use in site.each)


JOINED = Joined()
