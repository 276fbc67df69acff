"""A site's strategy timed on the device: the nodes it would add to the step graph, run alone on stand-in data."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fxperex.analysis.sites import Analysis
from fxperex.capture import Capture
from fxperex.devices import cache_folder, device_name
from fxperex.devices.calibrate import Timer
from fxperex.devices.store import write
from fxperex.evaluate import Run, join_uses, uses_of
from fxperex.registry import Site, Uses, strategies
from fxperex.strides import forget_strides


class Trial:
    """`trial(site, strategy)`: least seconds of norm and weighted sum, eagerly, on `device`.

    Every distinct shape is timed once; the cache folder keeps the result for this device and torch version.
    """

    def __init__(self, capture: Capture, analysis: Analysis, device: torch.device, *, remember: bool = True) -> None:
        self.capture, self.analysis, self.device = capture, analysis, device
        self.timer = Timer(device)
        self.path = cache_folder() / f"trials-{device_name(device)}.json" if remember else None
        self.known = _read(self.path)

    def __call__(self, site: Site, strategy: str) -> float:
        key = self.key(site, strategy)
        if key not in self.known:
            self.known[key] = self.measure(site, strategy)
            _write(self.path, self.known)
        return self.known[key]

    def key(self, site: Site, strategy: str) -> str:
        """Returns the name under which equal work is remembered: every use's op, its arguments' shapes, the rows.

        Other parameters of the node (a weight's bias) have no part in the work.
        """
        uses = []
        for use, node in zip(site.each, self._nodes(site), strict=True):
            flat = enumerate(pytree.tree_leaves((node.args, node.kwargs)))
            told = [_told(a) for i, a in flat if i == use.arg or not self._of_parameters(a)]
            uses.append([use.op, use.kind, use.arg, told])
        whole = json.dumps([strategy, site.rows, str(site.dtype), uses])
        return f"{strategy} {site.kind} {hashlib.sha256(whole.encode()).hexdigest()[:20]}"

    def _of_parameters(self, arg: Any) -> bool:
        return isinstance(arg, fx.Node) and arg.name in self.analysis.parameter_only

    def measure(self, site: Site, strategy: str) -> float:
        """Returns seconds, measured now."""
        return self.timer(self.prepare(site, strategy))

    def prepare(self, site: Site, strategy: str) -> Callable[[], object]:
        """Returns a call that does the site's work once: norm and weighted sum."""
        graph, fakes = self._trace(site, strategy)
        inputs = [_real(t, self.device, site) for t in fakes]

        def run() -> object:
            with torch.no_grad():
                return graph(*inputs)

        return run

    def _nodes(self, site: Site) -> list[fx.Node]:
        named = {n.name: n for n in self.capture.at(site.rows).nodes}
        return [named[use.node] for use in site.each]

    def _trace(self, site: Site, strategy: str) -> tuple[fx.GraphModule, list[Tensor]]:
        nodes = self._nodes(site)
        given = [a for a in dict.fromkeys(pytree.tree_leaves([(n.args, n.kwargs) for n in nodes])) if isinstance(a, fx.Node)]
        outs = [[v for v in pytree.tree_leaves(n.meta["val"]) if isinstance(v, Tensor)] for n in nodes]
        mains = {n.name: n for n in self.capture.main.nodes}
        twins = dict(zip(mains, self.capture.twin.nodes, strict=True))
        emit = strategies()[strategy]

        def step(*args: Tensor) -> tuple[Tensor, Tensor]:
            run = Run(env=dict(zip(given, args, strict=False)))
            grads = iter(args[len(given):-2])
            made: list[Uses | None] = [
                uses_of(use, node, run, self.analysis.axes, [next(grads) for _ in out], mains, twins,
                        (self.capture.main.rows, site.rows))
                for use, node, out in zip(site.each, nodes, outs, strict=True)]
            uses = join_uses(site, made)
            assert uses is not None
            return emit.sq_norm(uses), emit.weighted_sum(uses, args[-2], args[-1])

        fakes = self.capture.fakes
        with warnings.catch_warnings(), torch.no_grad(), fakes:
            warnings.simplefilter("ignore")
            device = outs[0][0].device
            factors = torch.ones(site.rows, dtype=torch.float64, device=device)
            valid = torch.ones(site.rows, dtype=torch.bool, device=device)
            inputs = [*(n.meta["val"] for n in given), *(v for out in outs for v in out), factors, valid]
            with torch.backends.mkldnn.flags(enabled=False):
                graph = make_fx(step, tracing_mode="real", _allow_non_fake_inputs=True)(*inputs)
        graph.graph.eliminate_dead_code()
        forget_strides(graph)
        return graph, inputs


def _real(fake: Tensor, device: torch.device, site: Site) -> Tensor:
    """Stand-in data of a fake tensor's shape and strides."""
    made = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=device)
    if fake.dtype.is_floating_point:
        return made.fill_(0.5)
    if fake.dtype == torch.bool:
        return made.fill_(True)
    entries = site.shape[0] if site.kind == "embedding" else 1
    return made.copy_(torch.arange(made.numel(), device=device).reshape(made.shape) % entries)


def _told(arg: Any) -> Any:
    if not isinstance(arg, fx.Node):
        return str(arg)
    return [(list(t.shape), str(t.dtype)) for t in pytree.tree_leaves(arg.meta["val"]) if isinstance(t, Tensor)]


def _read(path: Path | None) -> dict[str, float]:
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {str(k): float(v) for k, v in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"remembered timings {path} cannot be read ({error}); measuring anew", stacklevel=4)
        return {}


def _write(path: Path | None, known: dict[str, float]) -> None:
    if path is not None:
        try:
            write(path, json.dumps(known, indent=0, sort_keys=True))
        except OSError as error:
            warnings.warn(f"timings cannot be kept in {path}: {error}", stacklevel=4)
