"""Which backend was faster, remembered per graph, shapes, device, threads and versions in the cache
folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from pathlib import Path

import torch
from torch import Tensor, fx

from fxperex.config import cache_folder
from fxperex.files import write_whole
from fxperex.graph.step_graph import readable

VERSION = 5  # of what is measured against what, and who wins


def recall(graph: fx.GraphModule, inputs: list[Tensor]) -> str | None:
    """Returns the backend that was measured to be the fastest, None if no measurement can be
    read.
    """
    try:
        backend = json.loads(_path(graph, inputs).read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return backend if isinstance(backend, str) else None


def remember(graph: fx.GraphModule, inputs: list[Tensor], backend: str) -> None:
    """Keeps `backend`; a folder that cannot be written only means measuring again."""
    path = _path(graph, inputs)
    with contextlib.suppress(OSError):
        write_whole(path, json.dumps({"backend": backend}).encode())


def key(graph: fx.GraphModule, inputs: list[Tensor]) -> str:
    """Returns a digest of everything that decides which backend is faster."""
    device = inputs[0].device if inputs else torch.device("cpu")
    machine = f"{platform.machine()} {torch.get_num_threads()}"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    parts = [
        VERSION, torch.__version__, machine,
        [(list(x.shape), list(x.stride()), str(x.dtype)) for x in inputs],
        readable(graph.graph)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _path(graph: fx.GraphModule, inputs: list[Tensor]) -> Path:
    return cache_folder() / "backends" / f"{key(graph, inputs)[:32]}.json"
