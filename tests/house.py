"""Figures of the package's readability, counted on its source: `python -m tests.house` prints them.

Each figure is counted with Python's own parser over all files of `fxperex/`, so that nobody has to
guess whether names, lengths and layers got better or worse. `tests/test_house.py` holds what was
reached.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx

try:
    import floors  # as a test, beside it
except ImportError:
    from tests import floors  # as `python -m tests.house`

PACKAGE = Path(__file__).parents[1] / "fxperex"
RUNTIME = PACKAGE / "runtime"
# Words that say nothing of the thing that they name.
FILLERS = frozenset({
    "made", "found", "given", "told", "some", "one", "two", "other", "others", "known",
    "rest", "whole", "mine", "again", "each", "here", "there", "now", "at", "want",
    "wanted", "kept", "least", "most", "first", "last", "seen", "taken", "left", "right",
    "both", "live", "few", "add"})
# Letters of the mathematics, and indices: free to use.
LETTERS = frozenset("BGTDPagxynpijk_")
LONG_LINE, LONG_FUNCTION, LONG_SENTENCE = 100, 50, 35


@dataclass(frozen=True)
class Figure:
    """A figure: its name, its value, and the value to reach."""

    name: str
    value: float
    aim: float


def trees() -> dict[Path, ast.Module]:
    """Returns the syntax tree of every file of the package."""
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def figures() -> list[Figure]:
    """Returns every figure of the package as it is."""
    files = trees()
    names = [n.id for tree in files.values() for n in ast.walk(tree)
             if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    functions = [n for tree in files.values() for n in ast.walk(tree)
                 if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = [line for path in files for line in path.read_text().splitlines()]
    graph = imports(files)
    circles = [c for c in networkx.strongly_connected_components(graph) if len(c) > 1]
    return [
        Figure("filler words among bound names, %", _share(names, FILLERS.__contains__), 0.5),
        Figure("one-letter names outside the letters, %", _share(names, _is_letter), 10.0),
        Figure("lines over 100 columns, %", _share(lines, lambda line: len(line) > LONG_LINE), 2.0),
        Figure("functions over 50 lines", sum(map(_is_long, functions)), 0),
        Figure("functions fully typed, %", _share(functions, _is_typed), 99.0),
        Figure("docstring sentences over 35 words", sum(1 for _ in long_sentences(files)), 5),
        Figure("import circles", len(circles), 0),
        Figure("imports that run upwards", len(list(floors.upward(graph))), 0),
        Figure("loose files at the top", len(list(PACKAGE.glob("*.py"))), 12),
        Figure("comparisons of a layer kind's name", sum(1 for _ in compared_kinds(files)), 0),
        Figure("members of kinds not declared", sum(1 for _ in undeclared_members(files)), 0),
        Figure("uses of a step's private members", sum(1 for _ in private_uses(outsiders())), 0),
    ]


def outsiders() -> dict[Path, ast.Module]:
    """Returns the syntax tree of every file that runs steps from outside `fxperex/runtime/`."""
    root = PACKAGE.parent
    paths = [p for folder in ("fxperex", "tests", "benchmarks", "examples")
             for p in (root / folder).rglob("*.py")]
    return {p: ast.parse(p.read_text()) for p in sorted(paths) if RUNTIME not in p.parents}


def private_uses(files: dict[Path, ast.Module]) -> Iterator[tuple[Path, str]]:
    """Yields every `x._name` of a name that a class of `fxperex/runtime/` keeps to itself.

    Of an object's own names (`self._name`) none counts.
    """
    names = {n.attr for path in RUNTIME.glob("*.py") for n in ast.walk(ast.parse(path.read_text()))
             if isinstance(n, ast.Attribute) and _is_own(n) and _is_private(n.attr)}
    for path, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in names and not _is_own(node):
                yield path, ast.unparse(node)


def _is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imports(files: dict[Path, ast.Module]) -> networkx.DiGraph:
    """Returns which file imports which, lazy and type-only imports included."""
    modules = {_module(path): path for path in files}
    graph = networkx.DiGraph()
    graph.add_nodes_from(modules)
    for path, tree in files.items():
        for node in ast.walk(tree):
            for name in _imported(node):
                target = name if name in modules else name.rpartition(".")[0]
                if target in modules and target != _module(path):
                    graph.add_edge(_module(path), target)
    return graph


def long_sentences(files: dict[Path, ast.Module]) -> Iterator[tuple[Path, str]]:
    """Yields every sentence of a docstring that has too many words to be read once."""
    for path, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    for sentence in re.split(r"(?<=[.:;!?])\s+|\n\s*[-*|]|\n\S+: ", paragraph):
                        if len(sentence.split()) > LONG_SENTENCE:
                            yield path, " ".join(sentence.split())


def compared_kinds(files: dict[Path, ast.Module]) -> Iterator[tuple[Path, int]]:
    """Yields (file, line) outside of `layers/` that compares a kind with a registered name."""
    inside = {p: tree for p, tree in files.items() if PACKAGE / "layers" in p.parents}
    names = {call.args[0].value for tree in inside.values() for call in ast.walk(tree)
             if isinstance(call, ast.Call) and _called(call) == "layer_kind"
             and isinstance(call.args[0], ast.Constant)}
    for path in files.keys() - inside.keys():
        for node in ast.walk(files[path]):
            if isinstance(node, ast.Compare):
                parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
                named = any(isinstance(part, ast.Constant) and part.value in names
                            for part in parts)
                if named and any(map(_is_kind, parts)):
                    yield path, node.lineno


def undeclared_members(files: dict[Path, ast.Module]) -> Iterator[tuple[Path, int]]:
    """Yields (file, line) that uses a member of a layer kind which no class of the contract has.

    A kind is known by its name (`kind`) or by what returns one; asking with hasattr or getattr
    counts as well.
    """
    classes = [node for name in ("contract.py", "layers/windows.py")
               for node in files[PACKAGE / name].body if isinstance(node, ast.ClassDef)]
    declared = {name for cls in classes for node in cls.body for name in _bound(node)}
    for path, tree in files.items():
        if any("fxperex.layers.joined" in name or "fxperex.registry" in name
               for node in ast.walk(tree) for name in _imported(node)):
            for node in ast.walk(tree):
                used = isinstance(node, ast.Attribute) and _gives_kind(node.value)
                probed = isinstance(node, ast.Call) and _called(node) in ("hasattr", "getattr")
                if (used and node.attr not in declared) or (probed and _gives_kind(node.args[0])):
                    yield path, node.lineno


def _is_kind(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "kind") or (
        isinstance(node, ast.Name) and node.id == "kind")


def _gives_kind(node: ast.AST) -> bool:
    """Returns True for `kind`, `kinds()[...]`, `kind_of(...)` and what narrows it."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Call) and _called(node.value) == "kinds"
    if isinstance(node, ast.Call):
        return _called(node) in ("kind_of", "factored", "gram_kind", "_flat")
    return isinstance(node, ast.Name) and node.id == "kind"


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _share(items: list[Any], holds: Callable[[Any], bool]) -> float:
    return 100.0 * sum(map(bool, map(holds, items))) / max(len(items), 1)


def _is_letter(name: str) -> bool:
    return len(name) == 1 and name not in LETTERS


def _is_long(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return (function.end_lineno or function.lineno) - function.lineno + 1 > LONG_FUNCTION


def _is_typed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    named = [a for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
             if a.arg not in ("self", "cls")]
    return function.returns is not None and all(a.annotation for a in named)


def main() -> None:
    """Prints the figures beside what is to be reached."""
    for figure in figures():
        print(f"{figure.name:<42} {figure.value:8.2f}   aim {figure.aim:g}")


if __name__ == "__main__":
    main()
