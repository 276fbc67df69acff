"""The step graph as text: a line for each node, under a comment for each site and role.

Repeated blocks are printed once. A pattern of sites prints their nodes alone, and a depth prints an
outline by modules.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from fxperex.graph.provenance import END, MODULE, PART, Part, Role, made_for
from fxperex.graph.repeats import Stretch, folded

INPUTS, OUTPUTS = "inputs: parameters, buffers, batch, mask", "outputs"
FRAME, CLIPPED = "forward and backward", "clip factors and totals"
LONG = 8  # values of a list that an overview shows
# What an overview writes into the call that reads it, if only one does.
INLINE = frozenset({"reshape", "view", "transpose", "t", "permute", "unsqueeze", "squeeze",
                    "expand", "clone", "_to_copy", "slice", "select", "new_zeros", "zeros",
                    "scalar_tensor"})


@dataclass(frozen=True)
class Line:
    """A printed node. group: the comment that it stands under; path: its sites, or the module that
    it is from; token: equal for lines that differ in names and block numbers alone.
    """

    group: str
    text: str
    path: str
    token: Hashable


def readable(graph: fx.Graph) -> str:
    """Returns the complete text of `graph`, every node on a line of its own."""
    return "\n".join(_printed(_lines(graph)))


def overview(graph: fx.Graph, site: str | None = None, depth: int | None = None,
             fold: bool = True) -> str:
    """Returns the text of `graph`, with repeated blocks printed once if `fold`.

    site: a pattern such as "*.h.3.*"; only nodes of these sites, or of these modules, are printed.
    depth: print an outline instead, a line for each part of a module of at most `depth` names.
    """
    lines = list(_lines(graph, short=True))
    if site is not None:
        lines = [line for line in lines if _matches(line, site)]
    if depth is not None:
        lines = list(_outline(lines, depth))
    if not fold:
        return "\n".join(_printed(lines))
    return "\n".join(_folded(lines, folded([line.token for line in lines]), ""))


def lines_by_path(graph: fx.Graph) -> dict[str, list[str]]:
    """Returns {name of a site or path of a module: the lines of its nodes}."""
    texts: dict[str, list[str]] = {}
    for line in _lines(graph, short=True):
        for name in line.path.split(", ") if line.group != INPUTS else ():
            of_name, title = texts.setdefault(name, []), f"# {line.group}"
            if title not in of_name:
                of_name.append(title)
            of_name.append(line.text)
    return texts


def described(node: fx.Node) -> str:
    """Returns the dtype and shape of a node's value, '' if it is no tensor."""
    return _type(node).removeprefix(": ")


def starred(name: str) -> str:
    """Returns `name` with every number between dots or underscores as a star."""
    return re.sub(r"(?<![^._ ])\d+(?![^._ :,])", "*", name)


def numbered(names: Sequence[str]) -> str:
    """Returns one name for many that differ in one number: `h.{0..11}.mlp`; else their starred
    form.
    """
    parts = [re.split(r"([._ ])", name) for name in names]
    if len({len(part) for part in parts}) > 1:
        return starred(names[0])
    texts = []
    for values in zip(*parts, strict=True):
        distinct = list(dict.fromkeys(values))
        if len(distinct) == 1:
            texts.append(distinct[0])
        elif all(value.isdigit() for value in distinct):
            texts.append(_range(sorted(map(int, distinct))))
        else:
            texts.append("*")
    return "".join(texts)


def _range(numbers: list[int]) -> str:
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"


def _lines(graph: fx.Graph, short: bool = False) -> Iterator[Line]:
    texts: dict[fx.Node, str] = {}  # what stands for a node without a line
    outputs = set(next(iter(reversed(graph.nodes))).all_input_nodes) if short else set()
    group, summed = INPUTS, False
    after: set[fx.Node] = set()  # nodes that a site's norm reaches
    for node in graph.nodes:
        mark = made_for(node)
        if mark is not None or not after.isdisjoint(node.all_input_nodes):
            after.add(node)
        summed = summed or (mark is not None and mark.role is Role.WEIGHTED_SUM)
        if node.op == "output":
            yield from _outputs(node)
            return
        if node.op == "placeholder":
            text = f"{node.name}{_type(node)}  # {node.meta.get(END, 'input')}"
            yield Line(INPUTS, text, node.meta.get(END, ""), (starred(node.name), _type(node)))
            continue
        if not node.all_input_nodes:  # a constant belongs to what it stands in
            group = FRAME if group == INPUTS else group
        elif node.meta.get(PART) is Part.RECOMPUTED:
            group = "recomputed forward"
        elif mark is not None:
            group = str(mark)
        else:
            group = CLIPPED if summed or node in after else FRAME
        path = mark.site if mark is not None else node.meta.get(MODULE, "")
        call = _call(node, texts, short)
        if short and node not in outputs and _inlined(node):
            texts[node] = call
            continue
        text = f"{node.name}{_type(node)} = {call}"
        yield Line(group, text, path, _token(node, group, path))


def _outputs(node: fx.Node) -> Iterator[Line]:
    for i, value in enumerate(pytree.tree_leaves(node.args[0])):
        if isinstance(value, fx.Node):
            text = f"{value.name}{_type(value)}"
            yield Line(OUTPUTS, text, "", (OUTPUTS, starred(value.name), _type(value)))
        else:
            yield Line(OUTPUTS, f"output {i} = {value}", "", (OUTPUTS, i))


def _token(node: fx.Node, group: str, path: str) -> Hashable:
    # Which item is taken of a tuple may differ from block to block.
    values = node.all_input_nodes if node.target is operator.getitem else (node.args, node.kwargs)
    leaves = [_type(leaf) if isinstance(leaf, fx.Node) else str(leaf)
              for leaf in pytree.tree_leaves(values)]
    return starred(group), starred(path), str(node.target), _type(node), tuple(leaves)


def _matches(line: Line, pattern: str) -> bool:
    names = re.split(r"[ ,+]+", line.path) if line.path else []
    return any(fnmatchcase(name, pattern) for name in names)


def _outline(lines: list[Line], depth: int) -> Iterator[Line]:
    def short(line: Line) -> tuple[str, str]:
        if line.group in (INPUTS, OUTPUTS, CLIPPED):
            return line.group, ""
        names = dict.fromkeys(_cut(name, depth) for name in line.path.split(", "))
        part = line.group.rpartition(": ")[2] if ": " in line.group else line.group
        return part, ", ".join(names)

    start = 0
    for i in range(1, len(lines) + 1):
        if i == len(lines) or short(lines[i]) != short(lines[start]):
            part, path = short(lines[start])
            text = f"{path or '-'}  {part}: {i - start} nodes"
            yield Line(part if not path else "modules", text, path, starred(text))
            start = i


def _cut(path: str, depth: int) -> str:
    return ".".join(path.split(".")[:depth])


def _printed(lines: Any, group: str = "") -> Iterator[str]:
    for line in lines:
        if line.group != group:
            yield f"# {line.group}" if not group else f"\n# {line.group}"
            group = line.group
        yield line.text


def _folded(lines: list[Line], stretches: Sequence[Stretch], indent: str) -> Iterator[str]:
    group = ""
    for stretch in stretches:
        part = lines[stretch.start:stretch.start + stretch.length]
        if stretch.count == 1:
            texts = "\n".join(_printed(part, group)).splitlines()
            yield from (indent + text for text in texts if text or not indent)
            group = part[-1].group
            continue
        lead = f"and before, once, its last {stretch.lead} lines " if stretch.lead else ""
        yield f"{indent}# {stretch.count} x {_of(lines, stretch)}{lead}{{"
        yield from _folded(lines, stretch.inside, indent + "    ")
        yield f"{indent}# }}"
        group = ""


def _of(lines: list[Line], stretch: Stretch) -> str:
    """Returns which numbers the repeated blocks have, as "transformer.h.{0..11} ", or nothing."""
    each: dict[str, None] = {}
    for i in range(stretch.length):
        paths = [lines[stretch.start + i + k * stretch.length].path for k in range(stretch.count)]
        if len(set(paths)) == stretch.count and not any(", " in path for path in paths):
            each[re.sub(r"(\{[^}]*\}).*", r"\1", numbered(paths))] = None
    plain = [name for name in each if name.count("{") == 1 and "*" not in name]
    return f"{plain[0]} " if plain else ""


def _type(node: fx.Node) -> str:
    value = node.meta.get("val")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f": {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return ""


def _inlined(node: fx.Node) -> bool:
    if node.target is operator.getitem or (not node.all_input_nodes and not node.kwargs.get("size")
                                           and "rand" not in str(node.target)):
        return True
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    users = list(node.users)
    return name in INLINE and len(users) == 1 and made_for(node) == made_for(users[0])


def _call(node: fx.Node, texts: dict[fx.Node, str], short: bool) -> str:
    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            return texts.get(value, value.name)
        if isinstance(value, list | tuple):
            cut = short and len(value) > LONG
            inside = ", ".join(map(text, value[:3] if cut else value))
            return f"[{inside}, ... {len(value) - 3} more]" if cut else f"[{inside}]"
        return str(value)

    if node.target is operator.getitem:
        return f"{text(node.args[0])}[{node.args[1]}]"
    arguments = [*map(text, node.args), *(f"{k}={text(v)}" for k, v in node.kwargs.items())]
    name = str(node.target)
    return f"{name.removesuffix('.default') if short else name}({', '.join(arguments)})"
