"""Capture + batch axes -> the sites: where a batch-carrying tensor meets a parameter-only one.

Every trainable parameter ends in sites, is frozen, or is unused; anything else is a CoverageError.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.analysis.state import Reduced
from fxperex.capture import Capture, module_path, source_line
from fxperex.errors import CoverageError
from fxperex.registry import BatchAxis, Dims, Site, kinds

ISOMETRIC = {"aten.view", "aten.permute", "aten.transpose", "aten.t", "aten.reshape", "aten.unsqueeze", "aten.squeeze",
             "aten.clone", "aten.alias", "aten._unsafe_view", "aten.flatten", "aten.numpy_T", "aten.movedim"}
PIECES = {"aten.split", "aten.chunk", "aten.split_with_sizes", "aten.unbind"}
BLOCKED = {"aten.detach"}
RANDOM = {"aten.native_dropout", "aten.dropout", "aten.bernoulli", "aten.rand_like", "aten.randn_like"}


@dataclass(frozen=True)
class Analysis:
    """`sites`; `groups`: sites whose parameters' norms belong together; `unused`: parameters without gradient."""

    axes: dict[str, Any]
    sites: tuple[Site, ...]
    groups: tuple[tuple[Site, ...], ...]
    parameter_only: frozenset[str]
    unused: tuple[str, ...]


@dataclass
class _Origin:
    """What a parameter-only tensor is made of, and whether its pull-back keeps norms."""

    params: frozenset[str]
    isometric: bool = True
    piece: str = ""  # which disjoint piece of the parameter: pieces do not overlap


def find_sites(capture: Capture, axes: dict[str, Any], trainable: set[str]) -> Analysis:
    """Returns the Analysis of `capture` for the `trainable` parameter names. Raises CoverageError."""
    origins: dict[fx.Node, _Origin] = {}
    sites: list[Site] = []
    origin_of: dict[str, _Origin] = {}
    live = _reaches_loss(capture)
    for node in capture.main.nodes:
        if node.op == "placeholder":
            kind, name = capture.inputs[node.name]
            if kind == "parameter" and name in trainable:
                origins[node] = _Origin(frozenset([name]))
        elif node.op == "call_function" and node in live:
            found = [n for n in node.all_input_nodes if n in origins]
            if found and isinstance(axes[node.name], Reduced):
                raise CoverageError(f"a parameter enters the loss beside the batch at {source_line(node)}; a penalty on "
                                    "parameters belongs into the optimizer (weight_decay)")
            if found and axes[node.name] is None:
                origin = _follow(node, origins)
                if origin is not None:
                    origins[node] = origin
            elif found and str(node.target) not in {"aten.detach.default"}:
                for site, origin in _sites_of(capture, node, axes, origins):
                    sites.append(site)
                    origin_of[site.node + str(site.arg)] = origin
    named = _finish(sites, origin_of)
    used = {p for s in named for p in s.params}
    return Analysis(axes, tuple(named), _groups(named), frozenset(n.name for n in origins),
                    tuple(sorted(trainable - used)))


def _reaches_loss(capture: Capture) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    todo = list(capture.main.nodes[-1].all_input_nodes)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(node.all_input_nodes)
    return seen


def _packet(node: fx.Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target))


def _follow(node: fx.Node, origins: dict[fx.Node, _Origin]) -> _Origin | None:
    """Origin of a parameter-only node, or None where no gradient passes."""
    value, name = node.meta["val"], _packet(node)
    floats = [v for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor) and v.dtype.is_floating_point]
    if name in BLOCKED or not floats:
        return None
    if name in RANDOM:
        raise CoverageError(f"{name} draws random numbers for a parameter at {source_line(node)}: the draw is shared by "
                            "all examples. Drop activations instead")
    sources = [origins[n] for n in node.all_input_nodes if n in origins]
    params = frozenset().union(*(s.params for s in sources))
    first = sources[0]
    if len(sources) == 1 and first.isometric:
        if name in ISOMETRIC:
            return first
        if name in PIECES and not first.piece:
            return _Origin(params, True, node.name)
        if "getitem" in name and first.piece:
            return _Origin(params, True, f"{first.piece}[{node.args[1]}]")
    return _Origin(params, False)


def _sites_of(capture: Capture, node: fx.Node, axes: dict[str, Any],
              origins: dict[fx.Node, _Origin]) -> list[tuple[Site, _Origin]]:
    flat, _ = pytree.tree_flatten((node.args, node.kwargs))
    value = node.meta["val"]
    outs = [v for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor) and v.dtype.is_floating_point]
    if not outs:
        return []
    found = []
    state = axes[node.name]
    axis = next(s for s in pytree.tree_leaves(state, is_leaf=lambda s: isinstance(s, BatchAxis))
                if isinstance(s, BatchAxis))
    for at, arg in enumerate(flat):
        if not isinstance(arg, fx.Node) or arg not in origins:
            continue
        weight = arg.meta["val"]
        if not isinstance(weight, torch.Tensor):
            raise CoverageError(f"{node.target} at {source_line(node)} takes a list of parameters in one piece")
        name = next(k for k, kind in kinds().items() if kind.claims(node, at))
        rows = capture.main.rows
        dims: Dims | None = kinds()[name].dims(node, at, rows, axis)
        params = tuple(sorted(origins[arg].params))
        where = f"{module_path(node) or 'model'}, {source_line(node)}"
        found.append((Site("+".join(params), node.name, arg.name, at, name, _packet(node), params, tuple(weight.shape),
                           weight.dtype, rows, dims, origins[arg].isometric, True, where, weight.device,
                           sum(v.numel() for v in outs)), origins[arg]))
    return found


def _finish(sites: list[Site], origins: dict[str, _Origin]) -> list[Site]:
    """Gives every site its own name, and marks those that are alone on their parameter entries."""
    from dataclasses import replace

    keys = [origins[s.node + str(s.arg)] for s in sites]
    entries = [(k.params, k.piece) for k in keys]
    touching: dict[str, set[int]] = defaultdict(set)
    for i, (params, _) in enumerate(entries):
        for p in params:
            touching[p].add(i)

    def alone(i: int) -> bool:
        mine = entries[i]
        others = {j for p in mine[0] for j in touching[p]} - {i}
        return all(mine[1] and entries[j][1] and mine[1] != entries[j][1] for j in others)

    count: dict[str, int] = defaultdict(int)
    done = []
    for i, site in enumerate(sites):
        count[site.name] += 1
        name = site.name if count[site.name] == 1 else f"{site.name}@{count[site.name]}"
        done.append(replace(site, name=name, alone=alone(i)))
    return done


def _groups(sites: list[Site]) -> tuple[tuple[Site, ...], ...]:
    """Connected components: sites that share a parameter (those with norms of their own stay apart)."""
    groups: list[tuple[set[str], list[Site]]] = []
    for site in sites:
        if site.direct_norm:
            groups.append((set(), [site]))
            continue
        merged: tuple[set[str], list[Site]] = (set(site.params), [site])
        rest = []
        for group in groups:
            if group[0] & merged[0]:
                merged = (group[0] | merged[0], group[1] + merged[1])
            else:
                rest.append(group)
        groups = [*rest, merged]
    return tuple(tuple(g[1]) for g in groups)
