"""Whether a compiler may make a step graph faster, from its predicted seconds alone."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from fxperex.compiler.backends import WORTH
from fxperex.cost_model.nodes import node_cost
from fxperex.devices import Profile

# Of the time between products: what a compiler that fuses it may save at most. It still reads the
# operands of products and writes their results.
FUSED = 0.5


def may_pay(graph: fx.GraphModule, profile: Profile) -> bool:
    """Returns True unless the time between products (launches, pointwise traffic) is so small a
    share that a compiled step cannot win by enough to be taken.
    """
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    total = sum(profile.seconds(node_cost(node)) for node in calls)
    # This library's own kernels are single passes: a compiler cannot look into them.
    between = sum(profile.seconds(replace(node_cost(node), work=())) for node in calls
                  if getattr(node.target, "namespace", "") != "fxperex")
    return FUSED * between > (1 - WORTH) * total
