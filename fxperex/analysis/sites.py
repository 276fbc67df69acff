"""Capture + batch axes -> the sites: where a batch-carrying tensor meets a parameter-only one.

Every trainable parameter ends in sites, is frozen, or is unused; anything else is a CoverageError.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.analysis.dropped import refuse_dropped
from fxperex.analysis.joining import join
from fxperex.analysis.origins import Origin, Origins
from fxperex.analysis.state import Reduced
from fxperex.analysis.vmap_trial import refusal
from fxperex.capture.program import Capture, module_path
from fxperex.capture.source_lines import source_line
from fxperex.errors import CoverageError
from fxperex.graph.aten import packet_name
from fxperex.registry import kinds
from fxperex.sites import BatchAxis, Site


@dataclass(frozen=True)
class Analysis:
    """`sites`; `groups`: sites whose parameters' norms belong together; `unused`: parameters
    without gradient.
    """

    axes: dict[str, Any]
    sites: tuple[Site, ...]
    groups: tuple[tuple[Site, ...], ...]
    parameter_only: frozenset[str]
    unused: tuple[str, ...]

    def on(self, device: torch.device) -> Analysis:
        """Returns the Analysis of the same model on `device`, which need not be there."""

        def there(site: Site) -> Site:
            return replace(site, device=device, parts=tuple(map(there, site.parts)))

        return replace(self, sites=tuple(map(there, self.sites)),
                       groups=tuple(tuple(map(there, g)) for g in self.groups))


def find_sites(capture: Capture, axes: dict[str, Any], trainable: set[str]) -> Analysis:
    """Returns the Analysis of `capture` for the `trainable` parameter names. Raises
    CoverageError.
    """
    with capture.fakes:
        analysis = _analysis(capture, axes, trainable)
        refuse_dropped(capture, analysis.unused)
    return analysis


def _analysis(capture: Capture, axes: dict[str, Any], trainable: set[str]) -> Analysis:
    origins = Origins()
    candidates: list[tuple[Site, Origin, Hashable]] = []
    reaching = _reaches_loss(capture)
    twins = dict(zip(capture.main.nodes, capture.twin.nodes, strict=True))
    for node in capture.main.nodes:
        if node.op == "placeholder":
            kind, name = capture.inputs[node.name]
            if kind == "parameter" and name in trainable:
                origins.parameter(node, name)
        elif node.op == "call_function" and node in reaching and any(n in origins.of
                                                                     for n in node.all_input_nodes):
            if isinstance(axes[node.name], Reduced):
                raise CoverageError("a parameter enters the loss beside the batch at "
                                    f"{source_line(node)}; a penalty on parameters belongs into "
                                    "the optimizer (weight_decay)")
            if axes[node.name] is None:
                origins.follow(node)
            else:
                candidates += _sites_of(capture, node, axes, origins, twins)
    named = _finish(join(candidates))
    used = {p for s in named for p in s.params}
    return Analysis(axes, tuple(named), _groups(named), frozenset(n.name for n in origins.of),
                    tuple(sorted(trainable - used)))


def _reaches_loss(capture: Capture) -> set[fx.Node]:
    visited: set[fx.Node] = set()
    todo = list(capture.main.nodes[-1].all_input_nodes)
    while todo:
        node = todo.pop()
        if node not in visited:
            visited.add(node)
            todo.extend(node.all_input_nodes)
    return visited


def _sites_of(capture: Capture, node: fx.Node, axes: dict[str, Any], origins: Origins,
              twins: Mapping[fx.Node, fx.Node]) -> list[tuple[Site, Origin, Hashable]]:
    flat, _ = pytree.tree_flatten((node.args, node.kwargs))
    outs = [v for v in pytree.tree_leaves(node.meta["val"]) if isinstance(v, torch.Tensor)]
    axis = next(
        s for s in pytree.tree_leaves(axes[node.name], is_leaf=lambda s: isinstance(s, BatchAxis))
        if isinstance(s, BatchAxis))
    inputs = [v for n in node.all_input_nodes for v in pytree.tree_leaves(n.meta["val"])]
    real = not any(isinstance(v, torch.Tensor) and v.is_complex() for v in (*inputs, *outs))
    sites = []
    for place, arg in enumerate(flat):
        if not isinstance(arg, fx.Node) or arg not in origins.of or not origins.passes(node, place):
            continue
        weight, origin = arg.meta["val"], origins.of[arg]
        if not isinstance(weight, torch.Tensor):
            raise CoverageError(f"{node.target} at {source_line(node)} takes a list of parameters "
                                "in one piece")
        # Closed formulas are for real numbers; the rest asks autograd.
        name, kind = next((k, kind) for k, kind in kinds().items()
                          if (real or kind.complex_numbers) and kind.claims(node, place))
        params, rows = tuple(sorted(origin.params)), capture.main.rows
        op = packet_name(node.target)
        site = Site("+".join(params), node.name, arg.name, place, name, op, params,
                    tuple(weight.shape), weight.dtype, rows, kind.dims(node, place, rows, axis),
                    origin.isometric and real, True,
                    f"{module_path(node) or 'model'}, {source_line(node)}", weight.device,
                    outputs=sum(v.numel() for v in outs if v.is_floating_point() or v.is_complex()))
        site = replace(site, no_vmap=refusal(site, node, twins[node], axes))
        sites.append((site, origin, kind.layout(node, place)))
    return sites


def _finish(found: list[tuple[Site, Origin]]) -> list[Site]:
    """Gives every site its own name, and marks those that are alone on their parameter entries."""
    touching: dict[str, set[int]] = defaultdict(set)
    for i, (_, origin) in enumerate(found):
        for p in origin.params:
            touching[p].add(i)

    def alone(i: int, mine: Origin) -> bool:
        pieces = [found[j][1].piece for p in mine.params for j in touching[p] if j != i]
        return not pieces or (mine.piece is not None and all(p is not None and mine.piece.apart(p)
                                                             for p in pieces))

    count: dict[str, int] = defaultdict(int)
    done = []
    for i, (site, origin) in enumerate(found):
        count[site.name] += 1
        name = site.name if count[site.name] == 1 else f"{site.name}@{count[site.name]}"
        done.append(replace(site, name=name, alone=alone(i, origin)))
    return done


def _groups(sites: list[Site]) -> tuple[tuple[Site, ...], ...]:
    """Connected components: sites that share a parameter (those with norms of their own stay
    apart).
    """
    groups: list[tuple[set[str], list[Site]]] = []
    for site in sites:
        if site.direct_norm:
            groups.append((set(), [site]))
            continue
        merged: tuple[set[str], list[Site]] = (set(site.params), [site])
        remaining = []
        for group in groups:
            if group[0] & merged[0]:
                merged = (group[0] | merged[0], group[1] + merged[1])
            else:
                remaining.append(group)
        groups = [*remaining, merged]
    return tuple(tuple(g[1]) for g in groups)
