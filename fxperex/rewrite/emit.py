"""What the step graph computes for the sites: norms, weighted sums, per-example gradients.

A site alone on its parameter's entries has a norm of its own; sites that share a parameter are
pulled back and added first. Small stored gradients (biases, affine parts) are put side by side, so
that one norm and one weighted sum serve them
all: they are many, and each costs its calls, not its numbers. Nodes made for a site are
marked (`graph.provenance.Made`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fxperex.analysis.sites import Analysis
from fxperex.capture.program import Capture
from fxperex.config import LOW_PRECISION
from fxperex.errors import ConfigError, CoverageError, FxperexError
from fxperex.graph.provenance import BESIDE, PULLED, TIED, Role, made
from fxperex.kernels import by_factors
from fxperex.numerics.norms import sq_norm, wide
from fxperex.numerics.rounding import raised
from fxperex.registry import strategies
from fxperex.rewrite.evaluate import Run
from fxperex.sites import Site, SiteValues
from fxperex.strategies.stored import small

Bundle = tuple[int, torch.dtype]  # clip group and dtype of what may be side by side


def _several(sites: Sequence[Site]) -> str:
    """What the printed graph calls several sites."""
    return ", ".join([s.name for s in sites[:3]] + [f"{len(sites) - 3} more"] * (len(sites) > 3))


@contextmanager
def asked(values: SiteValues, name: str) -> Iterator[None]:
    """Turns whatever strategy `name` raises at a site into a CoverageError that says where."""
    try:
        yield
    except FxperexError:
        raise
    except Exception as error:
        site, text = values.site, str(error).strip() or type(error).__name__
        raise CoverageError(
            f"strategy {name!r} failed at {site.name} ({site.op} of kind {site.kind}, "
            f"{site.where}): {text.splitlines()[0]}. Choose another for it, as in "
            f"strategy={{{site.params[0]!r}: 'multi'}}") from error


def _squared(values: SiteValues, name: str) -> Tensor:
    """Returns upper bounds `[B]` on squared norms, stored gradients' raised by what reading
    lost.
    """
    with asked(values, name):
        squared = strategies()[name].sq_norm(values)
    return raised(squared, values.dtype) if strategies()[name].stores else squared


def widened(values: SiteValues) -> SiteValues:
    """Returns `values` with operands in float32 where they were bfloat16 or float16.

    A scaled gradient or a sum rounded to those can pass the clip bound by their own spacing, 2^-9
    of it and more.
    """
    if values.dtype not in LOW_PRECISION:
        return values
    args, grads = ([wide(x) if isinstance(x, Tensor) else x for x in operands]
                   for operands in (values.args, values.grads))
    return replace(values, args=args, grads=grads,
                   parts=tuple(widened(part) for part in values.parts))


@dataclass
class Emit:
    """Norms, sums and gradients of one evaluated program."""

    analysis: Analysis
    chosen: dict[str, str]
    run: Run
    uses: dict[str, SiteValues]
    rows: int
    clip_groups: dict[str, int]  # parameter -> the group whose norm and factor are its own
    pulled: dict[str,
                 Tensor] = field(default_factory=dict)  # per-example gradients of tied parameters
    bundles: dict[Bundle, Tensor] = field(default_factory=dict)  # small ones side by side, `[B, N]`

    def squares(self, mask: Tensor) -> Tensor:
        """Returns squared norms `[B, K]`, float64, of the K clip groups."""
        zero = torch.zeros(self.rows, dtype=torch.float64, device=mask.device)
        squares: list[list[Tensor]] = [
            [] for _ in range(1 + max(self.clip_groups.values(), default=0))
        ]
        for site in self._alone:
            name, clip_group = self.chosen[site.name], self._clip_group(site)
            with made(site.name, name, Role.NORM):
                squares[clip_group].append(_squared(self.uses[site.name], name))
        for key, sites in self._bundled.items():
            self.bundles[key] = self._side_by_side(sites)
            with made(_several(sites), BESIDE, Role.NORM):
                squares[key[0]].append(raised(sq_norm(self.bundles[key]), key[1]))
        for group in (g for g in self.analysis.groups if not g[0].direct_norm):
            for param, grads in self._pull([s for s in group if s.name in self.uses]).items():
                with made(param, TIED, Role.NORM):
                    self.pulled[param] = grads
                    squares[self.clip_groups[param]].append(raised(sq_norm(grads), grads.dtype))
        return torch.stack([torch.stack(of).sum(0) if of else zero for of in squares], 1)

    def _bundle(self, site: Site) -> Bundle | None:
        """What `site` may be side by side with, None for nothing."""
        dtype = self.uses[site.name].dtype
        return (
            self._clip_group(site),
            dtype) if small(site, self.chosen[site.name]) and dtype not in LOW_PRECISION else None

    @cached_property
    def _bundled(self) -> dict[Bundle, list[Site]]:
        bundles: dict[Bundle, list[Site]] = {}
        for site in self._direct:
            if key := self._bundle(site):
                bundles.setdefault(key, []).append(site)
        return {key: sites for key, sites in bundles.items() if len(sites) > 1}

    @cached_property
    def _alone(self) -> list[Site]:
        """The sites with a norm and a sum of their own."""
        together = {s.name for sites in self._bundled.values() for s in sites}
        return [s for s in self._direct if s.name not in together]

    @cached_property
    def _direct(self) -> list[Site]:
        return [s for g in self.analysis.groups for s in g if s.direct_norm and s.name in self.uses]

    def _side_by_side(self, sites: list[Site]) -> Tensor:
        gathered = []
        for site in sites:
            name = self.chosen[site.name]
            with made(site.name, name, Role.GRAD):
                gathered.append(self._stored(site).reshape(self.rows, -1))
        with made(_several(sites), BESIDE, Role.GRAD):
            return torch.cat(gathered, 1)

    def _stored(self, site: Site) -> Tensor:
        """Returns the site's per-example gradients; its strategy is one that stores them."""
        values, name = self.uses[site.name], self.chosen[site.name]
        with asked(values, name):
            grads = strategies()[name].stored(values)
        assert grads is not None
        return grads

    def _clip_group(self, site: Site) -> int:
        groups = {self.clip_groups[p] for p in site.params}
        if len(groups) > 1:
            raise ConfigError(f"parameters {', '.join(site.params)} meet the batch as one tensor "
                              f"at {site.name} and have one norm there; a clip rule must put them "
                              "into one group")
        return groups.pop()

    def _pull(self, sites: list[Site]) -> dict[str, Tensor]:
        """Per-example gradients of the parameters behind `sites`: the sum over uses, pulled
        back.
        """
        outs, stored = [], []
        for site in sites:
            with made(site.name, self.chosen[site.name], Role.GRAD):
                grads = self._stored(site)
                outs.append(self._tensor(site))
                stored.append(grads.to(outs[-1].dtype))
        names = sorted({p for s in sites for p in s.params})
        leaves = [self.run.leaves[n] for n in names]
        with made("+".join(names), TIED, Role.GRAD):
            gradients = torch.autograd.grad(outs, leaves, stored, retain_graph=True,
                                            is_grads_batched=True,
                                            allow_unused=True) if outs else []
        return {n: g for n, g in zip(names, gradients, strict=False) if g is not None}

    def _tensor(self, site: Site) -> Tensor:
        by_name = {n.name: v for n, v in self.run.params.items()}
        return by_name[site.weight]

    def sums(self, factors: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Returns {parameter: `sum_b factors[b, k] grad_b`} for factors `[B, K]`, k the parameter's
        clip group.
        """
        sums: dict[str, Tensor] = {}
        for param, grads in self.pulled.items():
            with made(param, TIED, Role.WEIGHTED_SUM):
                sums[param] = by_factors(grads, factors[:, self.clip_groups[param]], valid)
        outs, cotangents = [], []
        for site, total in self._sums(factors, valid):
            if len(site.params) == 1 and self._tensor(site) is self.run.leaves[site.params[0]]:
                sums[site.params[0]] = total
            else:
                outs.append(self._tensor(site))
                cotangents.append(total.to(outs[-1].dtype))
        return sums | self._pull_sum(outs, cotangents)

    def _sums(self, factors: Tensor, valid: Tensor) -> Iterator[tuple[Site, Tensor]]:
        """Every site whose norm is not that of a tied group, and its weighted sum."""
        for site in self._alone:
            name = self.chosen[site.name]
            values, own_factors = self.uses[site.name], factors[:, self._clip_group(site)]
            with made(site.name, name, Role.WEIGHTED_SUM), asked(values, name):
                total = strategies()[name].weighted_sum(widened(values), own_factors, valid)
            yield site, total
        for key, sites in self._bundled.items():
            with made(_several(sites), BESIDE, Role.WEIGHTED_SUM):
                bundle_sum = by_factors(self.bundles[key], factors[:, key[0]], valid)
                # Copies: parameters' gradients must not be parts of one tensor, which would live as
                # long as any of them.
                parts: Sequence[Tensor] = torch.ops.aten.split_with_sizes_copy(
                    bundle_sum, [s.size for s in sites])
                totals = [part.reshape(s.shape) for s, part in zip(sites, parts, strict=True)]
            yield from zip(sites, totals, strict=True)

    def _pull_sum(self, outs: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
        if not outs:
            return {}
        names = list(self.run.leaves)
        with made("pull-back", PULLED, Role.WEIGHTED_SUM):
            grads = torch.autograd.grad(outs, [self.run.leaves[n] for n in names], cotangents,
                                        retain_graph=True, allow_unused=True)
        return {n: g for n, g in zip(names, grads, strict=True) if g is not None}

    def per_example(self, param: str, args: tuple[Tensor, ...], capture: Capture) -> Tensor:
        """Per-example gradients `[B, *shape]` of one parameter, whatever the plan chose for
        norms.
        """
        if not self.pulled:
            self.pulled = self._pull_all()
        if param in self.pulled:
            return self.pulled[param]
        leaf = dict(zip((k for _, k in capture.inputs.values()), args, strict=False))[param]
        return leaf.new_zeros((self.rows, *leaf.shape))

    def _pull_all(self) -> dict[str, Tensor]:
        registered = strategies()
        for site in self.analysis.sites:
            if registered[self.chosen[site.name]].illegal(
                    site) is not None or not registered[self.chosen[site.name]].stores:
                legal = [
                    n for n in ("direct", "unfold", "vmap", "multi")
                    if registered[n].illegal(site) is None
                ]
                self.chosen = self.chosen | {site.name: legal[0]}
        return self._pull([s for s in self.analysis.sites if s.name in self.uses])
