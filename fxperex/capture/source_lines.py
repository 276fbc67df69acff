"""The user's own line behind every captured operation.

`torch.export` keeps the frames of `forward` methods alone: what a helper function or a lambda does
would be told by the line that called it. While the model is traced, a torch function mode writes
the innermost line of code outside torch and this library into the nodes' metadata, where
decompositions keep it.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx
from torch.fx import traceback
from torch.overrides import TorchFunctionMode

KEY = "fxperex.line"
_OWN = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))


class Lines(TorchFunctionMode):
    """Marks what is called inside with the user's line. Looks no further out than the frame of
    `top`.
    """

    def __init__(self, top: CodeType) -> None:
        super().__init__()
        self.top = top

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        place = self._place(sys._getframe(1))
        with traceback.annotate({KEY: place}) if place else contextlib.nullcontext():
            return func(*args, **(kwargs or {}))

    def _place(self, frame: FrameType | None) -> str:
        while frame is not None and frame.f_code is not self.top:
            if is_users(frame.f_code.co_filename):
                return f"{frame.f_code.co_filename}:{frame.f_lineno}"
            frame = frame.f_back
        return ""


@contextlib.contextmanager
def preserve_source_lines() -> Iterator[None]:
    """While it lasts, traced nodes keep the lines that `Lines` writes."""
    with traceback.preserve_node_meta():
        yield


def is_users(place: str) -> bool:
    """True for a file of neither torch nor this library, wherever the user's own files lie; False
    for generated code.
    """
    return not any(folder in place for folder in _OWN) and "<eval_with_key>" not in place


def source_line(node: fx.Node) -> str:
    """Returns 'file:line "code"' of the user's line that made `node`; of its first user's where it
    has none of its own.
    """
    todo, visited = deque([node]), {node}
    while todo:
        current = todo.popleft()
        line = _recorded(current) or _traced(current)
        if line:
            return line
        todo.extend(user for user in current.users if user not in visited)
        visited.update(current.users)
    return f"node {node.name}"


def _recorded(node: fx.Node) -> str:
    place = (node.meta.get("custom") or {}).get(KEY, "")
    file, _, line = place.rpartition(":")
    return f'{place} "{linecache.getline(file, int(line)).strip()}"' if place else ""


def _traced(node: fx.Node) -> str:
    """The innermost of the frames that export kept."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    frames = [(lines[i].strip(), lines[i + 1].strip() if i + 1 < len(lines) else "")
              for i in range(len(lines)) if lines[i].lstrip().startswith("File ")]
    own = [f for f in frames if is_users(f[0])]
    if not own:
        return ""
    place, code = own[-1]
    parts = place.split(", ")
    return (f'{parts[0].removeprefix("File ").strip(chr(34))}:{parts[1].removeprefix("line ")} '
            f'"{code}"')
