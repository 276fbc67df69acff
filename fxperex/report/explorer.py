"""Both graphs as JSON that Model Explorer opens: nodes in the namespaces of modules or sites."""

from __future__ import annotations

import json
from typing import Any

from torch import fx

from fxperex.capture.program import module_path
from fxperex.capture.source_lines import source_line
from fxperex.graph.aten import packet
from fxperex.graph.provenance import MODULE, made_for
from fxperex.graph.text import described
from fxperex.plan.plan import Plan


def explorer(captured: fx.Graph, plan: Plan, title: str, step: fx.Graph | None) -> str:
    """Returns the JSON text of a collection: the captured graph, and the step graph if any."""
    chosen = {c.site.node: c for c in plan.choices}
    facts = {name: {"site": c.site.name, "strategy": c.strategy,
                    "milliseconds": f"{1e3 * c.seconds:.3f}"} for name, c in chosen.items()}
    graphs = [{"id": "captured graph", "nodes": [
        _node(n, module_path(n), facts.get(n.name, {}) | (
            {"source": source_line(n)} if n.op == "call_function" else {}))
        for n in captured.nodes]}]
    if step is not None:
        graphs.append({"id": "step graph", "nodes": [_step_node(n) for n in step.nodes]})
    return json.dumps({"label": title, "graphs": graphs})


def _step_node(node: fx.Node) -> dict[str, Any]:
    mark = made_for(node)
    if mark is None:
        return _node(node, node.meta.get(MODULE, ""), {})
    facts = {"site": mark.site, "strategy": mark.strategy, "role": mark.role.value}
    return _node(node, f"{mark.site.partition(', ')[0]}.{mark.role.value}", facts)


def _node(node: fx.Node, path: str, facts: dict[str, str]) -> dict[str, Any]:
    label = packet(node) if node.op == "call_function" else node.name
    edges = [{"sourceNodeId": source.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
             for i, source in enumerate(node.all_input_nodes)]
    facts = {"name": node.name, "value": described(node), **facts}
    return {"id": node.name, "label": label, "namespace": path.replace(".", "/"),
            "incomingEdges": edges, "attrs": [{"key": k, "value": v} for k, v in facts.items()]}
