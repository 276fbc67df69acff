"""Forward and backward of one traced evaluation: the loss program with the parameters cut off.

Gradient flows between the sites' outputs only, so no ordinary weight gradient is ever formed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxperex.analysis.dropped import underivable
from fxperex.analysis.site_values import values_of
from fxperex.analysis.sites import Analysis
from fxperex.capture.program import Capture, module_path
from fxperex.config import LOW_PRECISION
from fxperex.errors import CoverageError
from fxperex.graph.provenance import MODULE, tagged
from fxperex.numerics.norms import wide
from fxperex.sites import Site, SiteValues


@dataclass
class Run:
    """Values of one traced evaluation of the loss program."""

    leaves: dict[str, Tensor] = field(default_factory=dict)
    params: dict[fx.Node, Any] = field(default_factory=dict)  # parameter-only values, with gradient
    env: dict[fx.Node, Any] = field(default_factory=dict)
    loss: Tensor | None = None
    buffers: list[Any] = field(default_factory=list)


def evaluate(capture: Capture, analysis: Analysis, graph: fx.GraphModule, args: tuple[Tensor,
                                                                                      ...]) -> Run:
    """Runs the program with the parameters cut off: gradient flows between site outputs only."""
    run = Run()
    outputs = {use.node for s in analysis.sites for use in s.each}
    values = iter(args)
    trainable = {p for s in analysis.sites for p in s.params}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            value = next(values)
            kind, name = capture.inputs[node.name]
            if kind == "parameter" and name in trainable:
                # A tied parameter may come in under two names; one leaf takes both gradients.
                run.params[node] = run.leaves.setdefault(name, _leaf(value))
            run.env[node] = value.detach()
        elif node.op == "call_function":
            with tagged(MODULE, module_path(node)):
                _call(run, node, node.name in analysis.parameter_only, node.name in outputs)
        else:
            *run.buffers, run.loss = [
                run.env.get(v, v) if isinstance(v, fx.Node) else v for v in node.args[0]
            ]
    return run


def _leaf(value: Tensor) -> Tensor:
    """What sums are pulled back to: of a 16-bit parameter a float32 copy, or each pull would round
    them.
    """
    return wide(value.detach()).requires_grad_()


def _call(run: Run, node: fx.Node, parameter_only: bool, is_site: bool) -> None:
    if parameter_only:
        _call_on_parameters(run, node)
        return
    value = _called(node, *fx.map_arg(node.args, run.env.__getitem__),
                    **fx.map_arg(node.kwargs, run.env.__getitem__))
    if is_site:
        value = pytree.tree_map_only(Tensor, _tracked, value)
    run.env[node] = value


def _called(node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """The node's value. A linear map of many positions is one product, as it is where the weight
    has a gradient.

    Of inputs that are not contiguous torch makes a product per row of the batch otherwise
    (attention's first map, sequence
    first, 64 x 16 x 256 by 768 on a CPU: 3.1 ms and 0.4 for the bias, one product 2.3).
    """
    if node.target is torch.ops.aten.linear.default and args[0].dim() > 2 and args[1].dim() == 2:
        x, *remaining = args
        return node.target(x.flatten(0, -2), *remaining, **kwargs).unflatten(0, x.shape[:-1])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _call_on_parameters(run: Run, node: fx.Node) -> None:
    """The value that the program uses, and the differentiable one that sums are pulled back
    through.

    They differ where a parameter is bfloat16 or float16 or the program rounds it to that: the sum
    must not be rounded with it before noise, so the differentiable one leaves the cast out.
    """
    def fetch(n: fx.Node) -> Any:
        return run.params[n] if n in run.params else pytree.tree_map_only(Tensor, wide, run.env[n])

    def evaluated(look: Callable[[fx.Node], Any]) -> Any:
        with torch.enable_grad():
            return node.target(*fx.map_arg(node.args, look),
                               **fx.map_arg(node.kwargs, look))  # type: ignore[operator]

    source = node.all_input_nodes[0] if node.all_input_nodes else None
    value = evaluated(fetch)
    cast = node.target is torch.ops.aten._to_copy.default and value.dtype in LOW_PRECISION
    run.params[node] = fetch(source) if cast and source is not None else value
    rounded = any(_dtypes(fetch(n)) != _dtypes(run.env[n]) for n in node.all_input_nodes)
    run.env[node] = pytree.tree_map_only(Tensor, Tensor.detach,
                                         evaluated(run.env.__getitem__) if rounded else value)


def _dtypes(value: Any) -> list[torch.dtype]:
    return [t.dtype for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _tracked(x: Tensor) -> Tensor:
    return x if x.requires_grad or not (x.is_floating_point()
                                        or x.is_complex()) else x.detach().requires_grad_()


def backward(capture: Capture, analysis: Analysis, run: Run, graph: fx.GraphModule,
             rows: int) -> dict[str, SiteValues]:
    """Gradients of the summed loss at every site's outputs, and each site's values."""
    nodes = {n.name: n for n in graph.graph.nodes}
    twins = dict(zip((n.name for n in capture.main.nodes), capture.twin.nodes, strict=True))
    at_proof = {n.name: n for n in capture.main.nodes}
    flat: list[Tensor] = []
    for name in dict.fromkeys(use.node for s in analysis.sites for use in s.each):
        flat += [
            t for t in pytree.tree_leaves(run.env[nodes[name]])
            if isinstance(t, Tensor) and t.requires_grad
        ]
    assert run.loss is not None
    if not run.loss.requires_grad:
        raise CoverageError("the loss does not depend on any trainable parameter")
    try:
        gradients = torch.autograd.grad(run.loss.sum(), flat, allow_unused=True)
    except RuntimeError as error:
        raise underivable(error, graph) from error
    grads = {id(t): g for t, g in zip(flat, gradients, strict=True)}
    of_nodes: dict[str, dict[str, Any]] = {}

    def of_use(site: Site) -> SiteValues | None:
        outs = [t for t in pytree.tree_leaves(run.env[nodes[site.node]]) if isinstance(t, Tensor)]
        own = [grads.get(id(t)) for t in outs]
        if all(g is None for g in own):
            return None
        values = values_of(site, nodes[site.node], lambda n: run.env[n].detach(), analysis.axes,
                           own, (at_proof[site.node], twins[site.node]),
                           (capture.main.rows, rows))
        return replace(values, shared=of_nodes.setdefault(site.node, {}))

    with torch.no_grad():
        return {
            s.name: joined
            for s in analysis.sites
            if (joined := join_uses(s, [of_use(use) for use in s.each]))
        }


def join_uses(site: Site, uses: list[SiteValues | None]) -> SiteValues | None:
    """Returns the values of a site, from those of its uses that the loss depends on."""
    present = tuple(use for use in uses if use is not None)
    if not present or not site.parts:
        return present[0] if present else None
    lead = present[0]
    dims = site.dims and replace(site.dims, B=lead.site.rows)
    site = replace(site, rows=lead.site.rows, dims=dims)
    return SiteValues(site, lead.node, [], [], lead.call, lead.out_axis, [], parts=present)
