"""Capture + Analysis + Plan -> the step graph: one torch.fx GraphModule.

Before: the forward program. After: forward; backward to the sites' outputs only (no ordinary weight gradient is
computed unless a strategy asks for it); per-site norms or per-example gradients; clip factors; weighted sums;
pull-backs to the parameters. Inputs: the capture's placeholders in order, then the mask `[B]`.
Nodes made for a site carry `(site, strategy, role)` in `meta["fxperex"]`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils import _pytree as pytree

from fxperex.analysis.losses import per_example_loss
from fxperex.analysis.sites import Analysis
from fxperex.capture import Capture
from fxperex.clipping import Clip
from fxperex.errors import CoverageError
from fxperex.numerics import sq_norm
from fxperex.planner import Plan
from fxperex.registry import BatchAxis, Site, Uses, strategies
from fxperex.step_graph import StepGraph
from fxperex.strategies.stored import weighted_sum
from fxperex.verify import verify

WANTS = ("step", "norms", "gradients")


def rewrite(capture: Capture, analysis: Analysis, plan: Plan, clip: Clip, want: str = "step") -> StepGraph:
    """Returns the step graph. Outputs by `want`: (losses, norms, factors, sums by parameter..., buffers...),
    (norms,) or (per-example gradients by parameter...); parameters in the order of `parameter_order`."""
    rows = 1 if plan.whole == "naive" else plan.rows
    program = capture.at(rows)
    loss_graph = per_example_loss(capture, analysis.axes, program)
    build = _naive if plan.whole == "naive" else _graph
    step = build(capture, analysis, plan, clip, loss_graph, want, rows)
    values = [n.meta["val"] for n in program.nodes if n.op == "placeholder"]
    with warnings.catch_warnings(), capture.fakes:
        # vmap says so where torch loops over examples inside; the plan knows what the strategy costs.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        mask = torch.ones(rows, dtype=torch.bool, device=values[-1].device)
        # Fused CPU recurrent layers have no traceable backward; without mkldnn they come apart into cells.
        with torch.backends.mkldnn.flags(enabled=False):
            traced = make_fx(step, tracing_mode="real", _allow_non_fake_inputs=True)(*values, mask)
    traced.graph.eliminate_dead_code()
    if want == "step":
        named = dict(zip((k for _, k in capture.inputs.values()), values, strict=True))
        verify(traced, rows, [tuple(named[n].shape) for n in _order(capture, analysis)], plan.whole)
    return StepGraph(traced, traced.graph)


def parameter_order(capture: Capture, trainable: set[str]) -> list[str]:
    """Returns the trainable parameters in the order of the capture's inputs."""
    return list(dict.fromkeys(key for kind, key in capture.inputs.values() if kind == "parameter" and key in trainable))


def _order(capture: Capture, analysis: Analysis) -> list[str]:
    return parameter_order(capture, {p for s in analysis.sites for p in s.params} | set(analysis.unused))


@contextlib.contextmanager
def _marked(site: str, strategy: str, role: str) -> Iterator[None]:
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
class _Run:
    """Values of one traced evaluation of the loss program."""

    leaves: dict[str, Tensor] = field(default_factory=dict)
    params: dict[fx.Node, Any] = field(default_factory=dict)  # parameter-only values, with gradient
    env: dict[fx.Node, Any] = field(default_factory=dict)
    loss: Tensor | None = None
    buffers: list[Any] = field(default_factory=list)


def _evaluate(capture: Capture, analysis: Analysis, graph: fx.GraphModule, args: tuple[Tensor, ...]) -> _Run:
    """Runs the program with the parameters cut off: gradient flows between site outputs only."""
    run = _Run()
    outputs = {s.node for s in analysis.sites}
    values = iter(args)
    trainable = {p for s in analysis.sites for p in s.params}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            value = next(values)
            kind, name = capture.inputs[node.name]
            if kind == "parameter" and name in trainable:
                # A tied parameter may come in under two names; one leaf takes both gradients.
                run.params[node] = run.leaves.setdefault(name, value.detach().requires_grad_())
            run.env[node] = value.detach()
        elif node.op == "call_function":
            _call(run, node, node.name in analysis.parameter_only, node.name in outputs)
        else:
            *run.buffers, run.loss = [run.env.get(v, v) if isinstance(v, fx.Node) else v for v in node.args[0]]
    return run


def _call(run: _Run, node: fx.Node, parameter_only: bool, is_site: bool) -> None:
    if parameter_only:
        def fetch(n: fx.Node) -> Any:
            return run.params.get(n, run.env[n])
        with torch.enable_grad():
            made = node.target(*fx.map_arg(node.args, fetch), **fx.map_arg(node.kwargs, fetch))  # type: ignore[operator]
        run.params[node] = made
        run.env[node] = pytree.tree_map_only(Tensor, lambda t: t.detach(), made)
        return
    made = node.target(*fx.map_arg(node.args, run.env.__getitem__),  # type: ignore[operator]
                       **fx.map_arg(node.kwargs, run.env.__getitem__))
    if is_site:
        made = pytree.tree_map_only(Tensor, _tracked, made)
    run.env[node] = made


def _tracked(x: Tensor) -> Tensor:
    return x if x.requires_grad or not x.dtype.is_floating_point else x.detach().requires_grad_()


def _graph(capture: Capture, analysis: Analysis, plan: Plan, clip: Clip, graph: fx.GraphModule, want: str,
           rows: int) -> Callable[..., tuple[Any, ...]]:
    chosen = {c.site.name: c.strategy for c in plan.choices}
    order = _order(capture, analysis)

    def step(*args: Tensor) -> tuple[Any, ...]:
        mask = args[-1]
        with torch.enable_grad():
            run = _evaluate(capture, analysis, graph, args[:-1])
            uses = _backward(capture, analysis, run, graph, rows)
        with torch.no_grad():
            emit = _Emit(analysis, chosen, run, uses, rows)
            if want == "gradients":
                return tuple(emit.per_example(name, args, capture) for name in order)
            norms = emit.norms(mask)
            if want == "norms":
                return (norms,)
            valid = mask & torch.isfinite(norms)
            factors = torch.where(valid, clip.factors(norms), 0.0)
            sums = emit.sums(factors, valid)
            params = dict(zip((k for _, k in capture.inputs.values()), args, strict=False))
            made = [sums[n] if n in sums else torch.zeros_like(params[n]) for n in order]
            assert run.loss is not None
            return (run.loss.detach(), norms, factors, *made, *run.buffers)

    return step


def _backward(capture: Capture, analysis: Analysis, run: _Run, graph: fx.GraphModule, rows: int) -> dict[str, Uses]:
    """Gradients of the summed loss at every site's outputs, and each site's values."""
    nodes = {n.name: n for n in graph.graph.nodes}
    twins = dict(zip((n.name for n in capture.main.nodes), capture.twin.nodes, strict=True))
    at_proof = {n.name: n for n in capture.main.nodes}
    flat: list[Tensor] = []
    for name in dict.fromkeys(s.node for s in analysis.sites):
        flat += [t for t in pytree.tree_leaves(run.env[nodes[name]]) if isinstance(t, Tensor) and t.requires_grad]
    assert run.loss is not None
    if not run.loss.requires_grad:
        raise CoverageError("the loss does not depend on any trainable parameter")
    found = torch.autograd.grad(run.loss.sum(), flat, allow_unused=True)
    grads = {id(t): g for t, g in zip(flat, found, strict=True)}
    uses = {}
    for site in analysis.sites:
        outs = [t for t in pytree.tree_leaves(run.env[nodes[site.node]]) if isinstance(t, Tensor)]
        mine = [grads.get(id(t)) for t in outs]
        if any(g is not None for g in mine):
            with torch.no_grad():
                uses[site.name] = _uses(site, nodes[site.node], run, analysis.axes, mine, at_proof, twins,
                                        (capture.main.rows, rows))
    return uses


def _uses(site: Site, node: fx.Node, run: _Run, axes: dict[str, Any], grads: list[Tensor | None],
          mains: dict[str, fx.Node], twins: dict[str, fx.Node], rows: tuple[int, int]) -> Uses:
    from dataclasses import replace

    flat, spec = pytree.tree_flatten((node.args, node.kwargs))
    main, twin = (pytree.tree_leaves((n.args, n.kwargs)) for n in (mains[node.name], twins[node.name]))
    values = [run.env[a].detach() if isinstance(a, fx.Node) else a for a in flat]
    where = [axes.get(a.name) if isinstance(a, fx.Node) else None for a in flat]
    # Numbers that grow with the batch, at a batch of one.
    single = [m - (t - m) * (rows[0] - 1) if isinstance(m, int) and m != t else None
              for m, t in zip(main, twin, strict=True)]

    def call(args: list[Any]) -> Any:
        positional, named = pytree.tree_unflatten(args, spec)
        return node.target(*positional, **named)  # type: ignore[operator]

    # One axis per output, None where an output has no batch: saved statistics, empty placeholders.
    out_axes = pytree.tree_leaves(axes[node.name], is_leaf=lambda s: s is None or isinstance(s, BatchAxis))
    first = next(s for s in out_axes if s is not None)
    dims = site.dims and replace(site.dims, B=rows[1])
    return Uses(replace(site, rows=rows[1], dims=dims), node, values, where, call, first, grads,
                {"single": single, "out_axes": out_axes})


@dataclass
class _Emit:
    """Norms, sums and gradients of one evaluated program."""

    analysis: Analysis
    chosen: dict[str, str]
    run: _Run
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
                    with _marked(site.name, name, "norm"):
                        total = total + strategies()[name].sq_norm(self.uses[site.name])
                continue
            for param, grads in self._pull(live).items():
                with _marked(param, "tied", "norm"):
                    self.pulled[param] = grads
                    total = total + sq_norm(grads)
        return total.sqrt()

    def _pull(self, sites: list[Site]) -> dict[str, Tensor]:
        """Per-example gradients of the parameters behind `sites`: the sum over uses, pulled back."""
        outs, stored = [], []
        for site in sites:
            with _marked(site.name, self.chosen[site.name], "grad"):
                grads = strategies()[self.chosen[site.name]].stored(self.uses[site.name])
                outs.append(self._tensor(site))
                stored.append(grads.to(outs[-1].dtype))
        names = sorted({p for s in sites for p in s.params})
        leaves = [self.run.leaves[n] for n in names]
        with _marked("+".join(names), "tied", "grad"):
            made = torch.autograd.grad(outs, leaves, stored, retain_graph=True, is_grads_batched=True,
                                       allow_unused=True) if outs else []
        return {n: g for n, g in zip(names, made, strict=False) if g is not None}

    def _tensor(self, site: Site) -> Tensor:
        by_name = {n.name: v for n, v in self.run.params.items()}
        return by_name[site.weight]

    def sums(self, factors: Tensor, valid: Tensor) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for param, grads in self.pulled.items():
            with _marked(param, "tied", "weighted_sum"):
                made[param] = weighted_sum(grads, factors, valid)
        outs, cotangents = [], []
        for site in (s for g in self.analysis.groups for s in g if s.direct_norm and s.name in self.uses):
            name = self.chosen[site.name]
            with _marked(site.name, name, "weighted_sum"):
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
        with _marked("pull-back", "vjp", "weighted_sum"):
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
            if known[self.chosen[site.name]].illegal(site) is not None or self.chosen[site.name] in {"ghost", "outer"}:
                legal = [n for n in ("direct", "unfold", "vmap", "multi") if known[n].illegal(site) is None]
                self.chosen = self.chosen | {site.name: legal[0]}
        return self._pull([s for s in self.analysis.sites if s.name in self.uses])


def _naive(capture: Capture, analysis: Analysis, plan: Plan, clip: Clip, graph: fx.GraphModule, want: str,
           rows: int) -> Callable[..., tuple[Any, ...]]:
    """The step of one row: an ordinary backward to the parameters."""
    order = _order(capture, analysis)

    def step(*args: Tensor) -> tuple[Any, ...]:
        mask, names = args[-1], [k for _, k in capture.inputs.values()]
        with torch.enable_grad():
            env = {k: a.detach().requires_grad_(k in order) for k, a in zip(names, args[:-1], strict=True)}
            *buffers, loss = fx.Interpreter(graph).run(*(env[k] for k in names))
            leaves = [env[n] for n in order]
            found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
        with torch.no_grad():
            grads = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]
            if want == "gradients":
                return tuple(g.unsqueeze(0) for g in grads)
            norms = torch.stack([sq_norm(g.unsqueeze(0)) for g in grads]).sum(0).sqrt()
            if want == "norms":
                return (norms,)
            valid = mask & torch.isfinite(norms)
            factors = torch.where(valid, clip.factors(norms), 0.0)
            sums = [weighted_sum(g.unsqueeze(0), factors, valid) for g in grads]
            return (loss.detach(), norms, factors, *sums, *buffers)

    return step


