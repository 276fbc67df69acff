"""Operations of this library -> plain ones, where a compiler fuses those into their surroundings
for less.

Eagerly one operation is one pass over memory, so the library has its own for what ATen takes
several for. Inductor makes one pass of several plain operations by itself, and none of an operation
it cannot look into. Each kernel says for which operands plain operations serve better
(`kernels.PLAINLY`). Precondition: `meta["val"]` on every node.
"""

from __future__ import annotations

from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxperex.kernels import PLAINLY


def inline_custom_ops(graph: fx.GraphModule) -> fx.GraphModule:
    """Rewrites `graph` in place, and returns it."""
    for node in list(graph.graph.nodes):
        if node.target in PLAINLY:
            _inline(graph.graph, node)
    graph.recompile()
    return graph


def _inline(graph: fx.Graph, node: fx.Node) -> None:
    values = [n.meta["val"] for n in node.args]  # type: ignore[union-attr]
    with values[0].fake_mode:
        body = make_fx(PLAINLY[node.target],
                       _allow_non_fake_inputs=True)(*values).graph  # type: ignore[index]
    if body.output_node().args[0] is None:
        return
    inputs = dict(zip(body.find_nodes(op="placeholder"), node.args, strict=True))
    with graph.inserting_before(node):
        inlined = graph.graph_copy(body, inputs)  # type: ignore[arg-type]
    node.replace_all_uses_with(inlined)  # type: ignore[arg-type]
    graph.erase_node(node)
