"""The second look at parameters that the sites leave out: a plain backward of the captured loss
must leave them out too.

Sites follow the graph operation by operation; this asks autograd about the whole of it at once, on
values without storage. The two share no code, so that a parameter cannot be dropped by one mistake
in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from fxperex.capture.program import Capture
from fxperex.capture.source_lines import source_line
from fxperex.errors import CoverageError
from fxperex.graph.aten import packet_name


def refuse_dropped(capture: Capture, unused: Iterable[str]) -> None:
    """Raises CoverageError for a parameter of `unused` that a gradient of the loss reaches; runs on
    fake values.
    """
    names = set(unused)
    nodes = [n for n in capture.main.nodes if n.op == "placeholder"]
    leaves = {
        n: n.meta["val"].detach().requires_grad_()
        for n in nodes
        if capture.inputs[n.name][1] in names and capture.inputs[n.name][0] == "parameter"
    }
    if not leaves:
        return
    with torch.enable_grad(), capture.fakes:
        graph = capture.main.graph
        loss = fx.Interpreter(graph).run(*(leaves.get(n, n.meta["val"]) for n in nodes))[-1]
        for node, gradient in zip(leaves, _gradients(loss, list(leaves.values()), graph),
                                  strict=True):
            if gradient is not None:
                line = source_line(next(iter(node.users)))
                raise CoverageError(f"parameter {capture.inputs[node.name][1]!r}, used at {line}, "
                                    "reaches the loss by a path that per-example gradients do not "
                                    "follow; it would never train. Please report this line; "
                                    "requires_grad_(False) trains the others")


def _gradients(loss: Tensor, leaves: list[Tensor],
               graph: fx.GraphModule) -> Iterable[Tensor | None]:
    if not loss.requires_grad:
        return [None] * len(leaves)
    try:
        return torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    except RuntimeError as error:
        raise underivable(error, graph) from error


def underivable(error: Exception, graph: fx.GraphModule) -> CoverageError:
    """Returns the error that names the operation whose missing derivative autograd raised about,
    and its line.
    """
    operation = re.search(r"(?:aten::|for '|'aten\.)(\w+)", str(error))
    name = f"aten.{operation.group(1)}" if operation else ""
    line = next(
        (source_line(n)
         for n in graph.graph.nodes
         if n.op == "call_function" and packet_name(n.target) == name), "")
    return CoverageError(f"{name or 'an operation'}{' at ' + line if line else ''} has no "
                         "derivative that a private step can take: "
                         f"{str(error).strip().splitlines()[0]}. Write the line with other "
                         "operations, or .detach() its input if no gradient is meant to pass")
