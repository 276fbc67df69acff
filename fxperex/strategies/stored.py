"""What strategies that store per-example gradients share: norm and weighted sum read the store."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from fxperex import kernels
from fxperex.config import LOW_PRECISION
from fxperex.contract import Strategy
from fxperex.cost_model.sites import read_stored
from fxperex.cost_model.sizes import grads_bytes, joining_bytes
from fxperex.costs import Cost
from fxperex.layers.joined import over_parts
from fxperex.numerics.norms import sq_norm
from fxperex.registry import strategies
from fxperex.sites import Site, SiteValues

READING = 12  # operations of norm and weighted sum
SMALL = 2**16  # bytes of a site's per-example gradients that are put beside others'


class Stored(Strategy):
    """Base of the strategies that form per-example gradients once and keep them.

    joins: `gradients` takes all uses of a site together; otherwise it is asked for each use, and
    they are added. `forming(site)` is the Cost of that alone; norm and weighted sum read the store
    at the same price for all.
    """

    stores = True
    joins = False

    @abstractmethod
    def forming(self, site: Site) -> Cost:
        """Returns the cost of forming the gradients of `site`."""

    def cost(self, site: Site) -> Cost:
        grads, parts = grads_bytes(site), (site,) if self.joins else site.each
        costs = [self.forming(part) for part in parts]
        work = (*(w for c in costs for w in c.work), *read_stored(site))
        # Every use but the first is added to those before it.
        moved = 3 * grads * (len(costs) - 1) + sum(c.bytes for c in costs)
        transient = max(*(c.transient for c in costs),
                        grads + joining_bytes(site) if len(costs) > 1 else 0.0)
        return Cost(work, moved, grads, transient, sum(c.launches for c in costs) + READING)

    @abstractmethod
    def gradients(self, values: SiteValues) -> Tensor:
        """Returns per-example gradients `[B, *shape]`, to be kept."""

    def stored(self, values: SiteValues) -> Tensor:
        key = type(self).__name__
        if key not in values.cache:
            grads = self.gradients(values) if self.joins else over_parts(values, self.gradients)
            values.cache[key] = grads
        return values.cache[key]

    def sq_norm(self, values: SiteValues) -> Tensor:
        return sq_norm(self.stored(values))

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        return kernels.by_factors(self.stored(values), factors, valid)


def small(site: Site, strategy: str) -> bool:
    """Returns True if the step puts the site's stored gradients side by side with others'.

    One norm and one sum then serve them all. Strategies that are not `Stored` form the norm as they
    form the gradients.
    """
    stored = isinstance(strategies()[strategy], Stored) and site.dtype not in LOW_PRECISION
    return stored and site.direct_norm and grads_bytes(site) <= SMALL
