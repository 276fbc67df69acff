"""Which backend was faster, remembered per graph, shapes, device, threads and versions in the cache
folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

import torch
from torch import Tensor, fx

from fxperex.graph.step_graph import readable

VERSION = 5  # of what is measured against what, and who wins


def recall(graph: fx.GraphModule, inputs: list[Tensor]) -> str | None:
    """Returns the backend that was measured to be the fastest before, None where nothing (legible)
    was.
    """
    try:
        backend = json.loads(_path(graph, inputs).read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return backend if isinstance(backend, str) else None


def remember(graph: fx.GraphModule, inputs: list[Tensor], backend: str) -> None:
    """Keeps `backend`; a folder that cannot be written only means measuring again."""
    path = _path(graph, inputs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"backend": backend}))
        temporary.replace(path)
    except OSError:
        return


def key(graph: fx.GraphModule, inputs: list[Tensor]) -> str:
    """Returns a digest of everything that decides which backend is faster."""
    device = inputs[0].device if inputs else torch.device("cpu")
    where = torch.cuda.get_device_name(
        device) if device.type == "cuda" else f"{platform.machine()} {torch.get_num_threads()}"
    parts = [
        VERSION, torch.__version__, where,
        [(list(x.shape), list(x.stride()), str(x.dtype)) for x in inputs],
        readable(graph.graph)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _path(graph: fx.GraphModule, inputs: list[Tensor]) -> Path:
    folder = Path(os.environ.get("FXPEREX_CACHE", Path.home() / ".cache" / "fxperex"))
    return folder / "backends" / f"{key(graph, inputs)[:32]}.json"
