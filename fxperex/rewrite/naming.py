"""Names for the ends of a step graph: what comes in and what goes out.

Before: `arg0_1`, `where_1`, `view_73`. After: `weight_of_conv1`, `norms`, `sum_of_conv1_weight`.
Only names change, so the graph computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import fx

from fxperex.graph.provenance import END


def name_ends(graph: fx.Graph, inputs: Sequence[tuple[str, str]], rule_inputs: int,
              outputs: Sequence[str]) -> None:
    """Gives every placeholder and every output of `graph` a name that says what it is.

    inputs: (kind, key) of the capture's inputs, in order; after them come `rule_inputs` of the
    clipping rule and the mask. outputs: their names in words, as "sum of conv1.weight".
    """
    rules = [("rule", str(i)) for i in range(rule_inputs)]
    ends = [*inputs, *rules, ("mask", "of rows that count")]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, (kind, key) in zip(placeholders, ends, strict=True):
        node.meta[END] = f"{kind} {key}"
        _rename(node, _reversed(key) if kind in ("parameter", "buffer") else
                kind if kind == "mask" else f"{kind} {key}")
        node.target = node.name  # the name of the argument
    named = set(placeholders)
    values = next(iter(reversed(graph.nodes))).args[0]
    for node, name in zip(values, outputs, strict=True):
        if isinstance(node, fx.Node) and node not in named:
            named.add(node)
            _rename(node, name)


def _reversed(key: str) -> str:
    """Returns "weight of conv1" for "conv1.weight"."""
    module, _, name = key.rpartition(".")
    return f"{name} of {module}" if module else name


def _rename(node: fx.Node, words: str) -> None:
    node._rename(re.sub(r"\W+", "_", words))
