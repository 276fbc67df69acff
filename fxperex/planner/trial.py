"""A site's strategy timed on the device: the nodes it would add to the step graph, on stand-in
data.

Results of the forward are computed beforehand. Sites of one node that share work (scale and shift
of a normalisation) run together, with the same strategy.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxperex.analysis.site_values import values_of
from fxperex.analysis.sites import Analysis
from fxperex.capture.program import Capture
from fxperex.config import cache_folder
from fxperex.devices import device_name
from fxperex.devices.calibrate import Timer
from fxperex.files import write_whole
from fxperex.graph.provenance import PART, Part, tagged
from fxperex.registry import kinds, strategies
from fxperex.rewrite.evaluate import Run, join_uses
from fxperex.rewrite.passes import IN_PLACE, apply
from fxperex.rewrite.trace import trace
from fxperex.sites import Site, SiteValues, at_rows

VERSION = 2  # of what a trial times; timings stored by another version are measured again


class Trial:
    """`trial(site, strategy)` returns the fastest of several eager runs of norm and weighted sum on
    `device`.

    Work that several sites share is divided among them. Every distinct shape is timed once; the
    cache folder keeps the result for this device and torch version.
    """

    def __init__(self, capture: Capture, analysis: Analysis, device: torch.device, *,
                 remember: bool = True) -> None:
        self.capture, self.analysis, self.device = capture, analysis, device
        self.timer = Timer(device)
        self.path = cache_folder() / f"trials-{device_name(device)}.json" if remember else None
        self.timings = _read(self.path)

    def __call__(self, site: Site, strategy: str) -> float:
        key = self.key(site, strategy)
        if key not in self.timings:
            self.timings[key] = self.measure(site, strategy)
            _write(self.path, self.timings)
        return self.timings[key]

    def key(self, site: Site, strategy: str) -> str:
        """Returns the name under which equal work is stored: every use's op, its arguments' shapes,
        the rows.

        The node's other parameters (such as the bias next to a weight) do not change the work.
        """
        uses = []
        for member in self._together(site, strategy):
            for use, node in zip(member.each, self._nodes(member), strict=True):
                arguments = enumerate(pytree.tree_leaves((node.args, node.kwargs)))
                shapes = [
                    _described(a)
                    for i, a in arguments
                    if i == use.arg or not self._of_parameters(a)
                ]
                uses.append([use.op, use.kind, use.arg, shapes])
        text = json.dumps([VERSION, strategy, site.rows, str(site.dtype), uses])
        return f"{strategy} {site.kind} {hashlib.sha256(text.encode()).hexdigest()[:20]}"

    def _together(self, site: Site, strategy: str) -> list[Site]:
        """Returns the sites of `site`'s node and kind if the strategy is legal for all of them.

        Otherwise, or if `site` has several uses, it returns `site` alone.
        """
        same = [at_rows(s, site.rows) for s in self.analysis.sites
                if (s.node, s.kind) == (site.node, site.kind) and not s.parts]
        illegal = strategies()[strategy].illegal
        return same if not site.parts and all(illegal(member) is None
                                              for member in same) else [site]

    def _of_parameters(self, arg: Any) -> bool:
        return isinstance(arg, fx.Node) and arg.name in self.analysis.parameter_only

    def measure(self, site: Site, strategy: str) -> float:
        """Returns seconds from a new measurement."""
        return self.timer(self.prepare(site, strategy)) / len(self._together(site, strategy))

    def prepare(self, site: Site, strategy: str) -> Callable[[], object]:
        """Returns a call that runs norms and weighted sums once, of all sites that share the
        work.
        """
        graph, fakes = self._trace(self._together(site, strategy), strategy)
        inputs = _hoisted(graph, [_stand_in(fake, self.device, site) for fake in fakes])

        def run() -> object:
            with torch.no_grad():
                return graph(*inputs)

        return run

    def _nodes(self, site: Site) -> list[fx.Node]:
        named = {n.name: n for n in self.capture.at(site.rows).nodes}
        return [named[use.node] for use in site.each]

    def _proved(self) -> dict[str, tuple[fx.Node, fx.Node]]:
        """Returns {name of a node: it and its twin at the proof}."""
        capture = self.capture
        pairs = zip(capture.main.nodes, capture.twin.nodes, strict=True)
        return {main.name: (main, twin) for main, twin in pairs}

    def _trace(self, sites: list[Site], strategy: str) -> tuple[fx.GraphModule, list[Tensor]]:
        rows = sites[0].rows
        nodes = list(dict.fromkeys(node for site in sites for node in self._nodes(site)))
        arguments = dict.fromkeys(pytree.tree_leaves([(n.args, n.kwargs) for n in nodes]))
        operands = [a for a in arguments if isinstance(a, fx.Node)]
        outs = {n: [v for v in pytree.tree_leaves(n.meta["val"]) if isinstance(v, Tensor)]
                for n in nodes}
        proved = self._proved()
        emit = strategies()[strategy]

        def step(*args: Tensor) -> list[tuple[Tensor, Tensor]]:
            run = Run(env=dict(zip(operands, args, strict=False)))
            with tagged(PART, Part.FORWARD):
                for node in nodes:
                    node.target(
                        *fx.map_arg(node.args, run.env.__getitem__),  # type: ignore[operator]
                        **fx.map_arg(node.kwargs, run.env.__getitem__))
            values = iter(args[len(operands):-2])
            grads = {node: [next(values) for _ in out] for node, out in outs.items()}
            results = []
            for site in sites:
                parts: list[SiteValues | None] = [
                    values_of(use, node, lambda n: run.env[n].detach(), self.analysis.axes,
                              list(grads[node]), proved[node.name],
                              (self.capture.main.rows, rows))
                    for use, node in zip(site.each, self._nodes(site), strict=True)]
                joined = join_uses(site, parts)
                assert joined is not None
                results.append((emit.sq_norm(joined), emit.weighted_sum(joined, *args[-2:])))
            return results

        fakes = self.capture.fakes
        with fakes:
            device = outs[nodes[0]][0].device
            factors = torch.ones(rows, dtype=torch.float64, device=device)
            valid = torch.ones(rows, dtype=torch.bool, device=device)
            inputs = [
                *(n.meta["val"] for n in operands), *(v for out in outs.values() for v in out),
                factors, valid
            ]
        with torch.no_grad():
            graph = trace(step, inputs, fakes)
        # The forward's own results may be dead code, and stay until what equals them is gone.
        apply(graph, IN_PLACE)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph, inputs


def _hoisted(graph: fx.GraphModule, inputs: list[Tensor]) -> list[Any]:
    """Takes the forward out of `graph`, in place; returns the graph's inputs, the forward's results
    among them.
    """
    nodes = list(graph.graph.nodes)
    forward = [n for n in nodes if n.op == "call_function" and n.meta.get(PART) is Part.FORWARD]
    if not forward:
        return list(inputs)
    interpreter = fx.Interpreter(graph, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*inputs)
    values = [interpreter.env[n] for n in forward]
    with graph.graph.inserting_before(next(n for n in nodes if n.op != "placeholder")):
        for node in forward:
            node.replace_all_uses_with(graph.graph.placeholder(f"{node.name}_computed"))
    for node in reversed(forward):
        graph.graph.erase_node(node)
    graph.recompile()
    return [*inputs, *values]


def _stand_in(fake: Tensor, device: torch.device, site: Site) -> Tensor:
    """Returns data with a fake tensor's shape and strides."""
    data = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=device)
    if fake.dtype.is_floating_point:
        return data.fill_(0.5)
    if fake.dtype == torch.bool:
        return data.fill_(True)
    entries = site.shape[0] if kinds()[site.kind].sparse else 1
    return data.copy_(torch.arange(data.numel(), device=device).reshape(data.shape) % entries)


def _described(arg: Any) -> Any:
    if not isinstance(arg, fx.Node):
        return str(arg)
    return [(list(t.shape), str(t.dtype))
            for t in pytree.tree_leaves(arg.meta["val"])
            if isinstance(t, Tensor)]


def _read(path: Path | None) -> dict[str, float]:
    if path is None or not path.exists():
        return {}
    try:
        return {str(key): float(seconds) for key, seconds in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"remembered timings {path} cannot be read ({error}); measuring "
                      "anew", stacklevel=4)
        return {}


def _write(path: Path | None, timings: dict[str, float]) -> None:
    if path is not None:
        try:
            write_whole(path, json.dumps(timings, indent=0, sort_keys=True).encode())
        except OSError as error:
            warnings.warn(f"timings cannot be kept in {path}: {error}", stacklevel=4)
