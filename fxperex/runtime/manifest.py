"""What `manifest.json` of a saved step must say, and whether that is true of this model and this
process.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxperex.capture.structure import CONSTANTS
from fxperex.errors import PackageError


def check_manifest(manifest: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Raises PackageError if an entry is missing or of another kind, or `model` or this process is
    not what it was made for.
    """
    for name, holds in SCHEMA.items():
        if name not in manifest or not holds(manifest[name]):
            raise PackageError(f"{path} is damaged: its manifest has no legal entry {name!r}")
    device = device_of_model(model)
    for what, current in process(device).items():
        if manifest[what] != current:
            raise PackageError(f"{path} was compiled for {what} {manifest[what]}; here it is "
                               f"{current}. Transform and save again")
    parameters, buffers = (dict(tensors(remove_duplicate=False))
                           for tensors in (model.named_parameters, model.named_buffers))
    for what, tensors in (("parameter", parameters), ("buffer", buffers)):
        described = {n: shape_and_dtype(x) for n, x in tensors.items()}
        _same(path, what, manifest[f"{what}s"], described)
    trainable = [n for n, p in parameters.items() if p.requires_grad]
    training = [n for n, m in model.named_modules() if m.training]
    for what, then, present in (("trains parameter", manifest["trainable"], trainable),
                                ("has in training mode", manifest["training"], training)):
        if sorted(then) != sorted(present):
            odd = sorted(set(then) ^ set(present))[0]
            raise PackageError(f"{path}: only one of the saved step and this model {what} {odd!r}")
    names = {
        "parameter": set(parameters), "buffer": set(buffers),
        "batch": set(range(len(manifest["batch"])))
    }
    if len(manifest["structure"]["names"]) != len(manifest["batch"]):
        raise PackageError(f"{path} is damaged: its manifest names other tensors of a batch than "
                           "it describes")
    known_inputs = all(key in names[kind] for _, kind, key in manifest["inputs"] if kind in names)
    if (not known_inputs or not set(manifest["order"]) <= names["parameter"]
            or not set(manifest["mutated"]) <= names["buffer"]):
        raise PackageError(f"{path} is damaged: its manifest names parameters, buffers or inputs "
                           "that there are not")


def _same(path: Path, what: str, then: dict[str, Any], present: dict[str, Any]) -> None:
    for name in [*then, *(n for n in present if n not in then)]:
        if then.get(name) != present.get(name):
            raise PackageError(f"{path} was compiled for another model: {what} {name!r} was "
                               f"{then.get(name)}, the model's is {present.get(name)}")


def process(device: torch.device) -> dict[str, str | None]:
    """Returns what compiled code depends on here: torch, kind of device, machine, name of the
    GPU.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "torch": torch.__version__, "device": device.type, "machine": platform.machine(), "gpu": gpu
    }


def device_of_model(model: nn.Module) -> torch.device:
    """Returns the device of the model's tensors; the CPU if it has none."""
    return next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device


def shape_and_dtype(x: Tensor) -> list[Any]:
    """Returns shape and dtype as JSON holds them."""
    return [list(x.shape), dtype_name(x.dtype)]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _sizes(x: Any) -> bool:
    return isinstance(x, list) and all(_whole(s) for s in x)


def _dtype(x: Any) -> bool:
    return isinstance(x, str) and isinstance(getattr(torch, x, None), torch.dtype)


def _tensors(x: Any) -> bool:
    return isinstance(x, dict) and all(
        isinstance(v, list) and len(v) == 2 and _sizes(v[0]) and _dtype(v[1]) for v in x.values())


def _names(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(n, str) for n in x)


def _text(x: Any) -> bool:
    return isinstance(x, str)


def _inputs(x: Any) -> bool:
    return isinstance(x, list) and all(
        isinstance(v, list) and len(v) == 3 and v[1] in ("parameter", "buffer", "constant", "batch")
        and isinstance(v[2], int if v[1] == "batch" else str) for v in x)


def _batch(x: Any) -> bool:
    return isinstance(x, list) and bool(x) and all(
        isinstance(v, list) and len(v) == 3 and _sizes(v[0]) and _dtype(v[1]) and _text(v[2])
        for v in x)


def _structure(x: Any) -> bool:
    return (isinstance(x, dict) and _names(x.get("names")) and isinstance(x.get("mapping"), bool)
            and isinstance(x.get("constants"), dict)
            and all(isinstance(c, CONSTANTS) for c in x["constants"].values()))


def _precision(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(isinstance(error, float) for error in x)


def _clip(x: Any) -> bool:
    return isinstance(x, dict) and set(x) == {"rule", "settings"} and _text(
        x["rule"]) and isinstance(x["settings"], dict)


SCHEMA: dict[str, Callable[[Any], bool]] = {
    "torch": _text, "machine": _text, "device": _text, "gpu": lambda x: x is None or _text(x),
    "parameters": _tensors, "trainable": _names, "buffers": _tensors, "training": _names,
    "inputs": _inputs, "batch": _batch, "structure": _structure, "order": _names, "mutated": _names,
    "rows": lambda x: _whole(x) and x > 0, "clip": _clip, "plan": _text, "waits": _names,
    "precision": _precision,
    "peak": lambda x: isinstance(x, int | float) and not isinstance(x, bool) and x >= 0
}
