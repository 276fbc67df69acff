"""`private.save(path)` and `load(path, model)`: a compiled step that runs elsewhere without capture, plan or compiler.

A saved step is one zip file: `manifest.json` (what it was made for), `constants.pt` (tensors the model's code made) and
`step.pt2`, the step graph compiled by AOTInductor. The last is machine code: **load only files you trust**.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex import clipping
from fxperex.compiler import guarded
from fxperex.devices import reserve
from fxperex.errors import ConfigError, PackageError, StateError
from fxperex.passes import plainly
from fxperex.runtime import PerExampleModule, _state
from fxperex.step_graph import copied

FORMAT = 2
PARTS = ("manifest.json", "constants.pt", "step.pt2")


def save(private: PerExampleModule, path: str | os.PathLike[str]) -> Path:
    """Returns the path written: a compiled copy of `private`'s step. Takes as long as compiling does.

    Raises ConfigError where the clipping rule cannot be written down, PackageError where AOTInductor fails; an
    older file at `path` is then left as it was.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"save takes a path; got {type(path).__name__}")
    target = Path(path)
    manifest = _manifest(private)
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "step.pt2"
        try:
            _compile(private, compiled)
        except Exception as error:  # a compiler fails in its own many ways
            raise PackageError(f"AOTInductor could not compile the step: {type(error).__name__}: {error}") from error
        whole = Path(folder) / "whole"
        with zipfile.ZipFile(whole, "w") as archive:
            archive.writestr("manifest.json", json.dumps(manifest, indent=1))
            archive.writestr("constants.pt", _bytes(private._capture.constants))
            archive.write(compiled, "step.pt2")
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.write_bytes(whole.read_bytes())
        beside.replace(target)
    return target


def load(path: str | os.PathLike[str], model: nn.Module) -> LoadedStep:
    """Returns the step saved at `path`, for `model`: `step`, `plan` (as text) and the rest of what needs no graph.

    **The file holds machine code: load only what you trust.** Everything else is checked before that code is touched:
    raises PackageError if the file is damaged, or was made for another model, dtype, device, torch or format.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(model, nn.Module):
        raise ConfigError(f"load takes a path and a torch.nn.Module; got {type(path).__name__} and {type(model).__name__}")
    source = Path(path)
    manifest, constants, compiled = _read(source)
    _check(manifest, model, source)
    from torch._inductor import aoti_load_package

    with tempfile.TemporaryDirectory() as folder:  # the loader unpacks it into a place of its own
        file = Path(folder) / "step.pt2"
        file.write_bytes(compiled)
        return LoadedStep(model, manifest, constants, aoti_load_package(str(file)))


class LoadedStep(PerExampleModule):
    """A private step from a file: `step` as ever; `norms`, `gradients` and the graphs stayed behind."""

    def __init__(self, model: nn.Module, manifest: dict[str, Any], constants: dict[str, Tensor], run: Any) -> None:
        self.model, self.clip, self.manifest = model, _clip_from(manifest["clip"]), manifest
        self.backend = "package"
        self._rows = manifest["rows"]
        self._spec = [(tuple(shape), _dtype(dtype), torch.device(device)) for shape, dtype, device in manifest["batch"]]
        inputs = {name: (kind, key) for name, kind, key in manifest["inputs"]}
        self._capture: Any = SimpleNamespace(inputs=inputs, constants=constants, mutated=manifest["mutated"])
        self._order = manifest["order"]
        self.parameters = {n: p for n, p in model.named_parameters(remove_duplicate=False) if n in self._order}
        self._state = _state(model)
        # What an error message says of the plan; the plan itself is text here.
        self.plan: Any = SimpleNamespace(rows=self._rows, peak=manifest["peak"], choices=())
        self._lid = reserve(manifest["peak"]) if manifest["device"] == "cpu" else None
        self._step = guarded(run, self.plan, lambda: self.plan.peak)

    def explain(self) -> str:
        """Prints and returns the table of the plan that the step was compiled from."""
        print(self.manifest["plan"])
        return str(self.manifest["plan"])

    @property
    def capture(self) -> fx.GraphModule:
        raise _left_behind("the captured program")

    @property
    def sites(self) -> tuple[Any, ...]:
        raise _left_behind("the sites")

    def _run(self, want: str, batch: tuple[Tensor, ...]) -> list[Tensor]:
        raise _left_behind(want)

    def save(self, path: str | os.PathLike[str]) -> Path:
        raise _left_behind("save")


def _left_behind(what: str) -> StateError:
    return StateError(f"{what}: a loaded step holds its compiled code only. Use fxperex.transform for the rest")


def _compile(private: PerExampleModule, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    copy = plainly(copied(private.step_graph))  # export takes the graph apart; the one people read stays whole
    inputs = tuple(x.clone() for x in private.example_inputs())
    with torch.no_grad():
        exported = torch.export.export(copy, inputs, strict=False)
        aoti_compile_and_package(exported, package_path=str(path))


def _manifest(private: PerExampleModule) -> dict[str, Any]:
    model, device = private.model, private._spec[0][2]
    return {
        "format": FORMAT, "torch": torch.__version__, "machine": platform.machine(), "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "parameters": {n: _told(p) for n, p in model.named_parameters(remove_duplicate=False)},
        "trainable": [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad],
        "buffers": {n: _told(b) for n, b in model.named_buffers(remove_duplicate=False)},
        "training": [n for n, m in model.named_modules() if m.training],
        "inputs": [[name, kind, key] for name, (kind, key) in private._capture.inputs.items()],
        "batch": [[list(shape), _name(dtype), where.type] for shape, dtype, where in private._spec],
        "order": private._order, "mutated": private._capture.mutated, "rows": private._rows,
        "clip": _clip_told(private.clip), "plan": str(private.plan), "peak": private.plan.peak or private.peak,
    }


def _check(manifest: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Raises PackageError where `model` or this process is not what the step was compiled for."""
    device = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device
    here = {"torch": torch.__version__, "device": device.type, "machine": platform.machine(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}
    for what, found in here.items():
        if manifest[what] != found:
            raise PackageError(f"{path} was compiled for {what} {manifest[what]}; here it is {found}. Transform and save again")
    _same(path, "parameter", manifest["parameters"], {n: _told(p) for n, p in model.named_parameters(remove_duplicate=False)})
    _same(path, "buffer", manifest["buffers"], {n: _told(b) for n, b in model.named_buffers(remove_duplicate=False)})
    trainable = [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    training = [n for n, m in model.named_modules() if m.training]
    for what, then, now in (("trains parameter", manifest["trainable"], trainable), ("has in training mode", manifest["training"],
                                                                                    training)):
        if sorted(then) != sorted(now):
            odd = sorted(set(then) ^ set(now))[0]
            raise PackageError(f"{path}: the saved step {what} {odd!r}, or the model does, and not both")


def _same(path: Path, what: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    for name in [*then, *(n for n in now if n not in then)]:
        if then.get(name) != now.get(name):
            raise PackageError(f"{path} was compiled for another model: {what} {name!r} was {then.get(name)}, the model's is "
                               f"{now.get(name)}")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            # Reading checks each part's sum: a truncated or altered file ends here.
            manifest, constants, compiled = (archive.read(name) for name in PARTS)
        found = json.loads(manifest)
        if found["format"] != FORMAT:
            raise PackageError(f"{path} has format {found['format']}; this version of fxperex reads {FORMAT}. Save it again")
        return found, torch.load(io.BytesIO(constants), weights_only=True), compiled
    except FileNotFoundError as error:
        raise PackageError(f"there is no saved step at {path}") from error
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError) as error:
        raise PackageError(f"{path} is damaged or no saved step ({type(error).__name__}: {error})") from error


def _told(x: Tensor) -> list[Any]:
    return [list(x.shape), _name(x.dtype)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def _bytes(constants: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({k: v.detach() for k, v in constants.items()}, buffer)
    return buffer.getvalue()


def _clip_told(clip: Any) -> dict[str, Any]:
    known = getattr(clipping, type(clip).__name__, None)
    fields = {f.name: getattr(clip, f.name) for f in dataclasses.fields(clip)} if dataclasses.is_dataclass(clip) else None
    if known is not type(clip) or fields is None or not all(isinstance(v, int | float | str) for v in fields.values()):
        raise ConfigError(f"the clipping rule {clip!r} cannot be written down; save takes the rules of fxperex.clipping whose "
                          "settings are numbers")
    return {"rule": type(clip).__name__, "settings": fields}


def _clip_from(told: dict[str, Any]) -> Any:
    return getattr(clipping, told["rule"])(**told["settings"])

