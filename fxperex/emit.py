"""What the step graph computes for the sites: norms, weighted sums, per-example gradients.

A site alone on its parameter's entries has a norm of its own; sites that share a parameter are pulled back and
added first. Nodes made for a site carry `(site, strategy, role)` in `meta["fxperex"]`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fxperex.analysis.sites import Analysis
from fxperex.capture import Capture
from fxperex.evaluate import Run
from fxperex.numerics import sq_norm
from fxperex.registry import Site, Uses, strategies
from fxperex.strategies.stored import weighted_sum


@contextlib.contextmanager
def marked(site: str, strategy: str, role: str) -> Iterator[None]:
    """Nodes traced inside carry who made them."""
    mode = get_proxy_mode()
    graph = mode.tracer.graph if mode is not None else None  # type: ignore[union-attr]
    last = next(iter(reversed(graph.nodes)), None) if graph else None
    yield
    if graph is None:
        return
    for node in reversed(graph.nodes):
        if node is last:
            break
        node.meta.setdefault("fxperex", (site, strategy, role))


@dataclass
class Emit:
    """Norms, sums and gradients of one evaluated program."""

    analysis: Analysis
    chosen: dict[str, str]
    run: Run
    uses: dict[str, Uses]
    rows: int
    pulled: dict[str, Tensor] = field(default_factory=dict)  # per-example gradients of tied parameters

    def norms(self, mask: Tensor) -> Tensor:
        total = torch.zeros(self.rows, dtype=torch.float64, device=mask.device)
        for group in self.analysis.groups:
            live = [s for s in group if s.name in self.uses]
            if len(group) == 1 and group[0].direct_norm:
                for site in live:
                    name = self.chosen[site.name]
                    with marked(site.name, name, "norm"):
                        total = total + strategies()[name].sq_norm(self.uses[site.name])
                continue
            for param, grads in self._pull(live).items():
                with marked(param, "tied", "norm"):
                    self.pulled[param] = grads
                    total = total + sq_norm(grads)
        return total.sqrt()

    def _pull(self, sites: list[Site]) -> dict[str, Tensor]:
        """Per-example gradients of the parameters behind `sites`: the sum over uses, pulled back."""
        outs, stored = [], []
        for site in sites:
            with marked(site.name, self.chosen[site.name], "grad"):
                grads = strategies()[self.chosen[site.name]].stored(self.uses[site.name])
                outs.append(self._tensor(site))
                stored.append(grads.to(outs[-1].dtype))
        names = sorted({p for s in sites for p in s.params})
        leaves = [self.run.leaves[n] for n in names]
        with marked("+".join(names), "tied", "grad"):
            made = torch.autograd.grad(outs, leaves, stored, retain_graph=True, is_grads_batched=True,
                                       allow_unused=True) if outs else []
        return {n: g for n, g in zip(names, made, strict=False) if g is not None}

    def _tensor(self, site: Site) -> Tensor:
        by_name = {n.name: v for n, v in self.run.params.items()}
        return by_name[site.weight]

    def sums(self, factors: Tensor, valid: Tensor) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for param, grads in self.pulled.items():
            with marked(param, "tied", "weighted_sum"):
                made[param] = weighted_sum(grads, factors, valid)
        outs, cotangents = [], []
        for site in (s for g in self.analysis.groups for s in g if s.direct_norm and s.name in self.uses):
            name = self.chosen[site.name]
            with marked(site.name, name, "weighted_sum"):
                total = strategies()[name].weighted_sum(self.uses[site.name], factors, valid)
            if len(site.params) == 1 and self._tensor(site) is self.run.leaves[site.params[0]]:
                made[site.params[0]] = total
            else:
                outs.append(self._tensor(site))
                cotangents.append(total.to(outs[-1].dtype))
        return made | self._pull_sum(outs, cotangents)

    def _pull_sum(self, outs: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
        if not outs:
            return {}
        names = list(self.run.leaves)
        with marked("pull-back", "vjp", "weighted_sum"):
            grads = torch.autograd.grad(outs, [self.run.leaves[n] for n in names], cotangents, retain_graph=True,
                                        allow_unused=True)
        return {n: g for n, g in zip(names, grads, strict=True) if g is not None}

    def per_example(self, param: str, args: tuple[Tensor, ...], capture: Capture) -> Tensor:
        """Per-example gradients `[B, *shape]` of one parameter, whatever the plan chose for norms."""
        if not self.pulled:
            self.pulled = self._pull_all()
        if param in self.pulled:
            return self.pulled[param]
        leaf = dict(zip((k for _, k in capture.inputs.values()), args, strict=False))[param]
        return leaf.new_zeros((self.rows, *leaf.shape))

    def _pull_all(self) -> dict[str, Tensor]:
        known = strategies()
        for site in self.analysis.sites:
            if known[self.chosen[site.name]].illegal(site) is not None or not known[self.chosen[site.name]].stores:
                legal = [n for n in ("direct", "unfold", "vmap", "multi") if known[n].illegal(site) is None]
                self.chosen = self.chosen | {site.name: legal[0]}
        return self._pull([s for s in self.analysis.sites if s.name in self.uses])
