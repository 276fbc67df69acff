"""`private.save(path)`: a compiled step that runs elsewhere without capture, plan or compiler.

A saved step is one zip file: `manifest.json` (what it was made for), `constants.pt` (tensors the
model's code made), `recorded.pt` (inputs and outputs that it must give again, see `recorded`) and
`step.pt2`, the step graph compiled by AOTInductor. The last is machine code: **load only files you
trust**. A file that was damaged, or of which one part was changed apart from the others, is
refused; who can change all of them can make it say anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.compiler import Check, host_waits, options
from fxperex.errors import ConfigError, PackageError
from fxperex.files import write_whole
from fxperex.graph.step_graph import copied
from fxperex.rewrite.passes.inline_custom_ops import inline_custom_ops
from fxperex.runtime.manifest import dtype_name, shape_and_dtype
from fxperex.runtime.recorded import Recorded, record
from fxperex.runtime.saved_rule import rule_to_json
from fxperex.runtime.signature import BY_ROW, StepSignature

FORMAT = 4
PARTS = ("manifest.json", "constants.pt", "recorded.pt", "step.pt2")


@dataclass(frozen=True)
class Facts:
    """What a file says beside the step: the plan as text, its peak in bytes, how products round
    their operands, and between which numbers the entries of each tensor of the batch lay.
    """

    plan: str
    peak: float
    precision: tuple[float, float]
    ranges: list[tuple[float, float]]


def save(path: str | os.PathLike[str], graph: fx.GraphModule, signature: StepSignature,
         model: nn.Module, inputs: list[Tensor], facts: Facts) -> Path:
    """Returns the path written: a compiled copy of the step `graph`, which runs on `inputs`. Takes
    as long as compiling does.

    Raises ConfigError if the clipping rule cannot be written down, PackageError if AOTInductor
    fails; an older file at `path` is then left as it was.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"save takes a path; got {type(path).__name__}")
    manifest = _manifest(graph, signature, model, facts)
    recorded = _record(graph, signature, model, facts.ranges, digest(manifest))
    constants = {name: x.detach() for name, x in signature.constants.items()}
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "step.pt2"
        try:
            _compile(graph, inputs, compiled)
        except Exception as error:  # a compiler fails in its own many ways
            raise PackageError(f"AOTInductor could not compile the step: {type(error).__name__}: "
                               f"{error}") from error
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("manifest.json", json.dumps(manifest, indent=1))
            archive.writestr("constants.pt", _bytes(constants))
            archive.writestr("recorded.pt", _bytes(recorded.to_plain()))
            archive.write(compiled, "step.pt2")
    write_whole(Path(path), buffer.getvalue())
    return Path(path)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Recorded, bytes]:
    """Returns (manifest, constants, what was recorded, compiled code) of a file.

    Raises PackageError for no file and for another format; a damaged file raises anything.
    """
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


def digest(manifest: dict[str, Any]) -> str:
    """Returns what `recorded.pt` says of the manifest that it belongs to."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _compile(graph: fx.GraphModule, inputs: list[Tensor], path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    # Export takes the graph apart; the one that people read stays as it is.
    copy = copied(graph)
    inline_custom_ops(copy)
    with torch.no_grad(), torch._inductor.config.patch(options(graph)):
        exported = torch.export.export(copy, tuple(x.clone() for x in inputs), strict=False)
        aoti_compile_and_package(exported, package_path=str(path))


def _record(graph: fx.GraphModule, signature: StepSignature, model: nn.Module,
            ranges: list[tuple[float, float]], manifest: str) -> Recorded:
    parameters, buffers = (dict(tensors(remove_duplicate=False))
                           for tensors in (model.named_parameters, model.named_buffers))
    check = Check(graph, (), len(BY_ROW))
    return record(check, parameters, buffers, ranges, signature, manifest)


def _manifest(graph: fx.GraphModule, signature: StepSignature, model: nn.Module,
              facts: Facts) -> dict[str, Any]:
    device = signature.spec[0][2]
    parameters, buffers = (dict(tensors(remove_duplicate=False))
                           for tensors in (model.named_parameters, model.named_buffers))
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "parameters": {n: shape_and_dtype(p) for n, p in parameters.items()},
        "trainable": [n for n, p in parameters.items() if p.requires_grad],
        "buffers": {n: shape_and_dtype(b) for n, b in buffers.items()},
        "training": [n for n, m in model.named_modules() if m.training],
        "inputs": [[name, kind, key] for name, (kind, key) in signature.inputs.items()],
        "batch": [[list(shape), dtype_name(dtype), place.type]
                  for shape, dtype, place in signature.spec],
        "structure": {
            "names": list(signature.structure.names), "mapping": signature.structure.mapping,
            "constants": dict(signature.structure.constants)
        },
        "order": list(signature.trained),
        "mutated": list(signature.mutated),
        "rows": signature.rows,
        "clip": rule_to_json(signature.clip),
        "plan": facts.plan,
        "peak": facts.peak,
        "waits": host_waits(graph),
        "precision": list(facts.precision),
    }


def _tensors(data: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(data), weights_only=True)


def _bytes(value: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
