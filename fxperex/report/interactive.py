"""The picture as a page without network: zoom, pan, search, unfold, and click for the facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from torch import fx

from fxperex.graph.text import lines_by_path
from fxperex.plan.byte_sizes import size
from fxperex.plan.choice import Choice
from fxperex.plan.plan import Plan
from fxperex.plan.table import shape
from fxperex.report.html import page, plan_html
from fxperex.report.lanes import nodes_by_path

TOOLS = ('<div class="fxperex-tools"><input id="search" placeholder="find a site or a module">'
         '<button id="fold">unfold blocks</button><button id="fit">fit</button>'
         '<span>wheel: zoom; drag: move; click a box: its facts</span></div>'
         '<div id="found"></div>')


def interactive(scenes: Sequence[str], captured: fx.Graph, plan: Plan, title: str,
                step: fx.Graph | None) -> str:
    """Returns the page: `scenes` are the picture as SVG, folded and unfolded."""
    facts = json.dumps(_facts(captured, plan, step)).replace("</", "<\\/")
    hidden = (f'<div class="scene"{"" if i == 0 else " hidden"}>{scene}</div>'
              for i, scene in enumerate(scenes))
    folder = resources.files("fxperex.report")
    style, script = (folder.joinpath(name).read_text() for name in ("page.css", "page.js"))
    stage = (f'<style>{style}</style><h3>{escape(title)}</h3>{TOOLS}<div id="stage">'
             f'<div id="scenes">{"".join(hidden)}</div><div id="facts">click a box</div></div>')
    data = f'<script type="application/json" id="data">{facts}</script>'
    return page(f"{stage}{plan_html(plan)}{data}<script>{script}</script>", title)


def _facts(captured: fx.Graph, plan: Plan, step: fx.Graph | None) -> dict[str, Any]:
    texts = {} if step is None else lines_by_path(step)
    facts = {f"site {c.site.name}": _of_site(c, texts.get(c.site.name, [])) for c in plan.choices}
    for path, nodes in nodes_by_path(captured).items():
        facts[f"module {path}"] = {"title": path, "rows": [["operations", str(len(nodes))]],
                                   "text": "\n".join(nodes + texts.get(path, []))}
    return facts


def _of_site(c: Choice, text: list[str]) -> dict[str, Any]:
    rows = [["strategy", c.strategy], ["predicted", f"{1e3 * c.seconds:.3f} ms"],
            ["held", size(c.cost.held)], ["kind", c.site.kind], ["B,G,T,D,P", shape(c)],
            ["node", c.site.node], ["where", c.site.where]]
    times = sorted(c.times.items(), key=lambda item: item[1])
    rows += [["or " + name, f"{1e3 * seconds:.3f} ms"] for name, seconds in times
             if name != c.strategy]
    rows += [["not " + name, reason] for name, reason in c.refused.items()]
    return {"title": c.site.name, "rows": rows, "text": "\n".join(text)}
