"""The step graph as a GraphModule whose printout names, at every site, who made the nodes."""

from __future__ import annotations

import re
from typing import Any

from torch import fx

from fxperex.errors import ConfigError
from fxperex.graph.text import overview, readable

__all__ = ["CapturedGraph", "StepGraph", "copied", "readable"]


class StepGraph(fx.GraphModule):
    """A GraphModule; `print_readable()` groups nodes under `# site: strategy (role)` lines."""

    def print_readable(self, print_output: bool = True, *args: object, site: str | None = None,
                       depth: int | None = None, fold: bool = True, **kwargs: object) -> str:
        """Prints and returns the graph as text: inputs, nodes by site and role, outputs.

        site: only nodes of the sites or modules that this pattern fits, as "*.h.3.*".
        depth: an outline, a line for each part of a module of at most `depth` names.
        fold: print repeated blocks once. False: every node.
        Raises ConfigError for a depth below 1, and for a pattern that fits nothing.
        """
        if depth is not None and (isinstance(depth, bool) or depth < 1):
            raise ConfigError(f"depth must be a number of names from 1 on; got {depth!r}")
        plain = site is None and depth is None and not fold
        text = readable(self.graph) if plain else overview(self.graph, site, depth, fold)
        if site is not None and not text:
            raise ConfigError(f"no site and no module of the step graph fits {site!r}; "
                              "private.explain() lists the sites")
        if print_output:
            print(text)
        return text


class CapturedGraph(fx.GraphModule):
    """A GraphModule that prints without torch's annotations, which say nothing of the model."""

    def print_readable(self, print_output: bool = True, *args: Any, **kwargs: Any) -> str:
        text = super().print_readable(False, *args, **kwargs)
        text = re.sub(r"(# )?Annotation: \{.*\} ?", "", text)
        text = re.sub(r"^( *)File:", r"\1# File:", text, flags=re.MULTILINE)
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
