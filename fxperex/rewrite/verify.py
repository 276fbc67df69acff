"""What must be true of a step graph, checked after it is made.

1. Every site with a gradient has nodes for its norm, and for its weighted sum; nothing else has.
2. No ordinary weight gradient is computed outside a site: backward goes to the sites' outputs only.
3. Outputs are per-example losses, norms and factors `[B]` (`[B, K]` for K clip groups), then one
   sum per parameter, of its shape.
4. The mask reaches the factors: padded rows cannot count.
"""

from __future__ import annotations

from torch import fx

from fxperex.errors import CoverageError
from fxperex.graph.provenance import Role, made_for

WEIGHT_GRADIENTS = {"aten.convolution_backward.default", "aten.embedding_dense_backward.default"}


def verify(graph: fx.GraphModule, rows: int, shapes: list[tuple[int, ...]], whole: str) -> None:
    """Raises CoverageError if the step graph breaks one of the four rules; `shapes` are the
    parameters'.
    """
    output = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    values = [v.meta["val"] for v in output.args[0]]  # type: ignore[union-attr]
    if any(tuple(v.shape) != (rows,) for v in values[:2]) or len(values[2]) != rows:
        raise CoverageError("internal: losses, norms and factors have shapes "
                            f"{[list(v.shape) for v in values[:3]]}")
    if [tuple(v.shape) for v in values[3:3 + len(shapes)]] != shapes:
        raise CoverageError("internal: the sums do not have the parameters' shapes")
    mask = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
    if not _reaches(mask, output.args[0][2]):  # type: ignore[index]
        raise CoverageError("internal: the mask does not reach the clip factors")
    if whole == "graph":
        _sites_complete(graph)


def _sites_complete(graph: fx.GraphModule) -> None:
    roles: dict[str, set[Role]] = {}
    for node in graph.graph.nodes:
        mark = made_for(node)
        if mark is not None:
            roles.setdefault(mark.site, set()).add(mark.role)
        elif str(node.target) in WEIGHT_GRADIENTS and _makes_weight_gradient(node):
            raise CoverageError(f"internal: {node.name} computes an ordinary weight gradient "
                                "outside every site")
    for site, roles_of_site in roles.items():
        if Role.NORM in roles_of_site and Role.WEIGHTED_SUM not in roles_of_site:
            raise CoverageError(f"internal: {site} has a norm and no weighted sum")


def _makes_weight_gradient(node: fx.Node) -> bool:
    return str(node.target) != "aten.convolution_backward.default" or bool(
        node.args[-1][1])  # type: ignore[index]


def _reaches(start: fx.Node, end: fx.Node) -> bool:
    visited: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node is start:
            return True
        if node not in visited:
            visited.add(node)
            todo.extend(node.all_input_nodes)
    return False
