"""Add a strategy of your own, look at its price, force it, and hold it to the float64 loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxperex
from fxperex import extend
from fxperex.testing import error, loop


@extend.strategy("einsum")
class Einsum(extend.Stored):
    """`grad_b = g_b^T a_b` as one einsum, stored: norm and weighted sum read the store."""

    def illegal(self, site: extend.Site) -> str | None:
        """A reason, or None: the planner shows it beside every site that this cannot serve."""
        product = extend.every_use(site, extend.Factored)
        return None if product else f"kind {site.kind} is not a product"

    def forming(self, site: extend.Site) -> extend.Cost:
        """What forming the gradients takes: one batched product of [P, T] and [T, D]."""
        d = site.dims
        assert d is not None
        flop = 2.0 * d.B * d.G * d.T * d.D * d.P
        dtype = str(site.dtype).removeprefix("torch.")
        product = extend.Work("bmm", (d.B * d.G, d.P, d.T, d.D), flop, dtype=dtype)
        return extend.Cost((product,), launches=20)

    def gradients(self, values: extend.SiteValues) -> Tensor:
        """`[B, *shape of the weight]`, from inputs `a [B,G,T,D]` and output gradients `g`."""
        kind = extend.factored(values.site)
        a, g = kind.factors(values)
        return kind.fold(values, torch.einsum("bgtp,bgtd->bgpd", g, a))


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
batch = torch.randn(16, 32), torch.randint(0, 10, (16,))
loss = nn.CrossEntropyLoss()

# Asked for by name at one layer. Elsewhere the planner weighs it like any other strategy.
private = fxperex.transform(model, batch, loss, strategy={"0.weight": "einsum"}, backend="eager")
print(private.plan)

truth = loop(model, lambda m, x, y: loss(m(x), y), batch)
errors = {name: error(g, truth[name]) for name, g in private.gradients(*batch).items()}
print("errors against the float64 loop", errors)
assert max(errors.values()) < 1e-5

# The same check over small samples, in float64 and float32, says in words what is wrong.
print(extend.check_strategy("einsum", [(nn.Linear(5, 3), (torch.randn(4, 2, 5),))]))
