"""The step graph as a GraphModule whose printout names, at every site, who made the nodes."""

from __future__ import annotations

from torch import fx

from fxperex.graph.provenance import PART, Part, Role, made_for


class StepGraph(fx.GraphModule):
    """A GraphModule; `print_readable()` groups nodes under `# site: strategy (role)` lines."""

    def print_readable(self, print_output: bool = True, *args: object, **kwargs: object) -> str:
        text = readable(self.graph)
        if print_output:
            print(text)
        return text


def copied(graph: fx.GraphModule) -> fx.GraphModule:
    """Returns a copy whose nodes may be changed; modules and constants are shared."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        copies[node] = new.node_copy(node, copies.__getitem__)
    return fx.GraphModule(graph, new)


def readable(graph: fx.Graph) -> str:
    """Returns the graph, one node a line with shape and dtype, under a comment line per site and
    role.
    """
    lines: list[str] = ["# inputs: parameters, buffers, batch, mask"]
    group, summed = "", False
    behind: set[fx.Node] = set()  # nodes that a site's norm reaches
    for node in graph.nodes:
        mark = made_for(node)
        if mark is not None or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
        summed = summed or (mark is not None and mark.role is Role.WEIGHTED_SUM)
        if not node.all_input_nodes:  # a constant belongs to what it stands in
            part = group or "forward and backward"
        elif node.meta.get(PART) is Part.RECOMPUTED:
            part = "recomputed forward"
        elif mark is not None:
            part = str(mark)
        else:
            part = "clip factors and totals" if summed or node in behind else "forward and backward"
        if part != group and node.op == "call_function":
            lines.append(f"\n# {part}")
            group = part
        lines.append(f"{node.name}{_type(node)} = {_call(node)}")
    return "\n".join(lines)


def _type(node: fx.Node) -> str:
    value = node.meta.get("val")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f": {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return ""


def _call(node: fx.Node) -> str:
    args = ", ".join([str(a) for a in node.args] + [f"{k}={v}" for k, v in node.kwargs.items()])
    return f"{node.op}({args})" if node.op in {"placeholder", "output"
                                               } else f"{node.target}({args})"
