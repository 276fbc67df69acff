"""`private.save(path)` and `load(path, model)`: a compiled step that runs elsewhere without
capture, plan or compiler.

A saved step is one zip file: `manifest.json` (what it was made for), `constants.pt` (tensors the
model's code made), `recorded.pt` (inputs and outputs that it must give again, see `recorded`) and
`step.pt2`, the step graph compiled by AOTInductor. The last is machine code: **load only files you
trust**. A file that was damaged, or of which one part was changed apart from the others, is
refused; who can change all of them can make it say anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from fxperex.compiler import Check, Step, guarded, host_waits, options
from fxperex.compiler import recorded as recorded_graph
from fxperex.devices import hold_heap
from fxperex.errors import ConfigError, FxperexError, PackageError, StateError
from fxperex.graph.step_graph import copied
from fxperex.numerics import rounding
from fxperex.rewrite.passes import inline_custom_ops
from fxperex.runtime.manifest import check_manifest, dtype_name, told
from fxperex.runtime.manifest import device_of_model as _device
from fxperex.runtime.model_state import state
from fxperex.runtime.module import PerExampleModule
from fxperex.runtime.recorded import Recorded, compare, drawn, record

FORMAT = 3
PARTS = ("manifest.json", "constants.pt", "recorded.pt", "step.pt2")
RULES: dict[str, type[clipping.Clip]] = {
    r.__name__: r
    for r in (clipping.Flat, clipping.Automatic, clipping.Normalised, clipping.PerLayer)
}


def save(private: PerExampleModule, path: str | os.PathLike[str]) -> Path:
    """Returns the path written: a compiled copy of `private`'s step. Takes as long as compiling
    does.

    Raises ConfigError where the clipping rule cannot be written down, PackageError where
    AOTInductor fails; an older file at `path` is then left as it was.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"save takes a path; got {type(path).__name__}")
    target = Path(path)
    manifest = _manifest(private)
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "step.pt2"
        recorded = _record(private, manifest)
        try:
            _compile(private, compiled)
        except Exception as error:  # a compiler fails in its own many ways
            raise PackageError(f"AOTInductor could not compile the step: {type(error).__name__}: "
                               f"{error}") from error
        archive_path = Path(folder) / "whole"
        with zipfile.ZipFile(archive_path, "w") as archive:
            archive.writestr("manifest.json", json.dumps(manifest, indent=1))
            archive.writestr("constants.pt",
                             _bytes({k: v.detach()
                                     for k, v in private._capture.constants.items()}))
            archive.writestr("recorded.pt", _bytes(recorded.to_plain()))
            archive.write(compiled, "step.pt2")
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.write_bytes(archive_path.read_bytes())
        beside.replace(target)
    return target


def load(path: str | os.PathLike[str], model: nn.Module) -> LoadedStep:
    """Returns the step saved at `path`, for `model`: `step`, `plan` (as text) and the rest of what
    needs no graph.

    **The file holds machine code: load only what you trust.** Everything else is checked before
    that code is touched: raises PackageError if the file is damaged, or was made for another model,
    dtype, device, torch or format. Then the code must give what was recorded when it was saved, and
    clip as the file says; this takes a second copy of the parameters for a moment.
    """
    try:
        if not isinstance(path, str | os.PathLike) or not isinstance(model, nn.Module):
            raise ConfigError("load takes a path and a torch.nn.Module; got "
                              f"{type(path).__name__} and {type(model).__name__}")
        source = Path(path)
        manifest, constants, recorded, compiled = _read(source)
        check_manifest(manifest, model, source)
        if recorded.manifest != _digest(manifest):
            raise PackageError(f"{source}: its manifest is not the one that the step was recorded "
                               "with; it was changed")
        if recorded.rows != manifest["rows"]:
            raise PackageError(f"{source} was recorded with {recorded.rows} rows, its manifest "
                               f"says {manifest['rows']}")
        from torch._inductor import aoti_load_package

        with tempfile.TemporaryDirectory(
        ) as folder:  # the loader unpacks it into a place of its own
            file = Path(folder) / "step.pt2"
            file.write_bytes(compiled)
            return LoadedStep(model, manifest, constants, recorded, aoti_load_package(str(file)))
    except (FxperexError, Warning):
        raise
    except Exception as error:  # whatever reading a damaged file may raise
        raise PackageError(f"{path} is damaged or no saved step ({type(error).__name__}: "
                           f"{error})") from error


class LoadedStep(PerExampleModule):
    """A private step from a file: `step` as ever; `norms`, `gradients` and the graphs stayed
    behind.
    """

    def __init__(self, model: nn.Module, manifest: dict[str, Any], constants: dict[str, Tensor],
                 recorded: Recorded, run: Any) -> None:
        self.model, self.clip, self.manifest = model, _clip_from(manifest["clip"]), manifest
        self.backend, self._check = "package", None
        self._rows, self._order = manifest["rows"], manifest["order"]
        device = _device(model)
        self._spec = [(tuple(shape), _dtype(dtype), device) for shape, dtype, _ in manifest["batch"]
                      ]
        inputs = {name: (kind, key) for name, kind, key in manifest["inputs"]}
        self._capture: Any = SimpleNamespace(inputs=inputs, constants=constants,
                                             mutated=manifest["mutated"])
        named = dict(model.named_parameters(remove_duplicate=False))
        self.parameters = {n: named[n] for n in self._order}
        self._state = state(model)
        self._operands = tuple(manifest["precision"])
        rounding.refuse_coarser(self._operands, device)
        # What an error message says of the plan; the plan itself is text here.
        self.plan: Any = SimpleNamespace(rows=self._rows, peak=manifest["peak"], choices=())
        self._filler = drawn(recorded, self._spec)  # rows that the eager step ran on
        self._step = guarded(run, self.plan, lambda: self.plan.peak)
        names = [
            "the losses", "the norms", "the factors", *(f"the sum of {n!r}" for n in self._order),
            *(f"the buffer {n!r}" for n in manifest["mutated"])
        ]
        compare(recorded, self._step, named, self._spec, self._assembled, names, self.clip,
                self._order)
        if device.type == "cuda":
            self._step = guarded(self._recorded(run, manifest["waits"]), self.plan,
                                 lambda: self.plan.peak)
        self._lid = hold_heap(manifest["peak"]) if manifest["device"] == "cpu" else None

    def _recorded(self, run: Step, waits: list[str]) -> Step:
        """`run` as one CUDA graph, or as it is."""
        mask = torch.ones(self._rows, dtype=torch.bool, device=self._spec[0][2])
        rolled = tuple(x.roll(1, 0) for x in self._filler)
        tries = [("recorded rows", [*self._inputs(rows), mask]) for rows in (self._filler, rolled)]
        fixed = [kind != "batch" for kind, _ in self._capture.inputs.values()] + [False]
        return [*recorded_graph(run, tries[0][1], fixed, waits, tries), run][0]

    def explain(self) -> str:
        """Prints and returns the table of the plan that the step was compiled from."""
        print(self.manifest["plan"])
        return str(self.manifest["plan"])

    @property
    def proved(self) -> bool:
        """False: the proof was made where the step was saved, and this process has only the file's
        word for it.
        """
        return False

    def _program(self) -> fx.GraphModule:
        raise _left_behind("the captured program")

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
    return StateError(f"{what}: a loaded step holds its compiled code only. Use fxperex.transform "
                      "for the rest")


def _compile(private: PerExampleModule, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    copy = inline_custom_ops(copied(
        private.step_graph))  # export takes the graph apart; the one people read stays whole
    inputs = tuple(x.clone() for x in private.example_inputs())
    with torch.no_grad(), torch._inductor.config.patch(options(private.step_graph)):
        exported = torch.export.export(copy, inputs, strict=False)
        aoti_compile_and_package(exported, package_path=str(path))


def _record(private: PerExampleModule, manifest: dict[str, Any]) -> Recorded:
    model, check = private.model, Check(private.step_graph, (), 3)
    named, buffers = (dict(tensors(remove_duplicate=False))
                      for tensors in (model.named_parameters, model.named_buffers))
    return record(check, named, buffers, private._ranges, private._spec, private._rows,
                  private._assembled, _digest(manifest))


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _manifest(private: PerExampleModule) -> dict[str, Any]:
    model, device = private.model, private._spec[0][2]
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "parameters": {n: told(p)
                       for n, p in model.named_parameters(remove_duplicate=False)},
        "trainable": [
            n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad
        ],
        "buffers": {n: told(b)
                    for n, b in model.named_buffers(remove_duplicate=False)},
        "training": [n for n, m in model.named_modules() if m.training],
        "inputs": [[name, kind, key] for name, (kind, key) in private._capture.inputs.items()],
        "batch": [
            [list(shape), dtype_name(dtype), where.type] for shape, dtype, where in private._spec
        ],
        "order": private._order,
        "mutated": private._capture.mutated,
        "rows": private._rows,
        "clip": _clip_told(private.clip),
        "plan": str(private.plan),
        "peak": private.plan.peak or private.peak,
        "waits": host_waits(private.step_graph),
        "precision": list(private._operands),
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Recorded, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            # Reading checks each part's sum: a truncated or altered file ends here.
            names = archive.namelist()
            manifest, constants, recorded, compiled = (archive.read(name) if name in names else b""
                                                       for name in PARTS)
    except FileNotFoundError as error:
        raise PackageError(f"there is no saved step at {path}") from error
    body = json.loads(manifest)
    if body["format"] != FORMAT:
        raise PackageError(f"{path} has format {body['format']}; this version of fxperex reads "
                           f"{FORMAT}. Save it again")
    return body, _tensors(constants), Recorded(**_tensors(recorded)), compiled


def _tensors(data: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(data), weights_only=True)


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def _bytes(value: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _clip_told(clip: Any) -> dict[str, Any]:
    rule = RULES.get(type(clip).__name__)
    fields = {f.name: getattr(clip, f.name)
              for f in dataclasses.fields(clip)} if dataclasses.is_dataclass(clip) else None
    if rule is not type(clip) or fields is None or not all(
            isinstance(v, int | float | str) for v in fields.values()):
        raise ConfigError(f"the clipping rule {clip!r} cannot be written down; save takes the "
                          "rules of fxperex.clipping whose settings are numbers")
    return {"rule": type(clip).__name__, "settings": fields}


def _clip_from(described: dict[str, Any]) -> clipping.Clip:
    return RULES[described["rule"]](**described["settings"])
