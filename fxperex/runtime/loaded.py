"""`fxperex.load(path, model)`: a saved step -> a step that runs here, or the reason why it does
not.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fxperex.capture.distributed import world_size
from fxperex.compiler import Forecast, Step, guarded
from fxperex.compiler import recorded as recorded_graph
from fxperex.devices import hold_heap
from fxperex.errors import ConfigError, FxperexError, PackageError, StateError
from fxperex.numerics import rounding
from fxperex.runtime.batches import Rows
from fxperex.runtime.manifest import check_manifest, device_of_model
from fxperex.runtime.package import digest, read
from fxperex.runtime.recorded import Recorded, compare, drawn
from fxperex.runtime.saved_rule import rule_from_json
from fxperex.runtime.signature import StepSignature
from fxperex.runtime.step import StepRunner
from fxperex.runtime.step_result import StepResult


class LoadedStep:
    """A private step from a file: it steps as the one that was saved. What needs a graph (norms,
    gradients, pictures) stayed with that one.

    plan: the table of the plan that it was compiled from; manifest: what the file says.
    """

    backend = "package"
    # The proof was made where the step was saved; this process has only the file's word for it.
    proved = False

    def __init__(self, runner: StepRunner, manifest: dict[str, Any], heap: Tensor | None) -> None:
        self.model, self.clip = runner.model, runner.signature.clip
        self.parameters = runner.parameters
        self.manifest, self.plan = manifest, str(manifest["plan"])
        self._runner = runner
        self._heap = heap  # while it is alive, the step's working memory stays with the process

    def step(self, *batch: Tensor) -> StepResult:
        """Returns StepResult of `batch`; adds the clipped SUM of its per-example gradients to each
        `.grad`. Raises as `PerExampleModule.step`.
        """
        return self._runner.step(batch)

    def sums(self, *batch: Tensor) -> tuple[StepResult, list[Tensor]]:
        """Returns StepResult of `batch` and the clipped SUM for each of `parameters`; writes no
        `.grad`.
        """
        return self._runner.sums(batch)

    def check(self, *batch: Tensor) -> None:
        """Raises ShapeError unless `batch` is what the step takes, StateError as `check_model`."""
        self._runner.check(batch)

    def check_model(self) -> None:
        """Raises StateError if the model or the precision of products is not as it was at load."""
        self._runner.check_model()

    def explain(self) -> str:
        """Prints and returns the table of the plan that the step was compiled from."""
        print(self.plan)
        return self.plan

    @property
    def capture(self) -> NoReturn:
        """Raises StateError, as do the following: a saved step has no graph."""
        raise _left_behind("the captured program")

    @property
    def sites(self) -> NoReturn:
        raise _left_behind("the sites")

    def norms(self, *batch: Tensor) -> NoReturn:
        raise _left_behind("norms")

    def gradients(self, *batch: Tensor) -> NoReturn:
        raise _left_behind("gradients")

    def save(self, path: str | os.PathLike[str]) -> NoReturn:
        raise _left_behind("save")


def _left_behind(what: str) -> StateError:
    return StateError(f"{what}: a loaded step holds its compiled code only. Use fxperex.transform "
                      "for the rest")


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
        if world_size() > 1:
            raise ConfigError(f"torch.distributed has {world_size()} processes, and a loaded step "
                              "adds nothing up over them. Make the step with fxperex.transform")
        source = Path(path)
        manifest, constants, recorded, code = read(source)
        check_manifest(manifest, model, source)
        if recorded.manifest != digest(manifest):
            raise PackageError(f"{source}: its manifest is not the one that the step was recorded "
                               "with; it was changed")
        if recorded.rows != manifest["rows"]:
            raise PackageError(f"{source} was recorded with {recorded.rows} rows, its manifest "
                               f"says {manifest['rows']}")
        return _loaded(model, manifest, constants, recorded, _unpacked(code))
    except (FxperexError, Warning):
        raise
    except Exception as error:  # whatever reading a damaged file may raise
        raise PackageError(f"{path} is damaged or no saved step ({type(error).__name__}: "
                           f"{error})") from error


def _unpacked(code: bytes) -> Step:
    from torch._inductor import aoti_load_package

    with tempfile.TemporaryDirectory() as folder:  # the loader unpacks it into a place of its own
        file = Path(folder) / "step.pt2"
        file.write_bytes(code)
        return aoti_load_package(str(file))


def _loaded(model: nn.Module, manifest: dict[str, Any], constants: dict[str, Tensor],
            recorded: Recorded, code: Step) -> LoadedStep:
    """The step, after its code has given what was recorded."""
    signature = _signature(manifest, constants, device_of_model(model))
    device, operands = signature.spec[0][2], tuple(manifest["precision"])
    rounding.refuse_coarser(operands, device)
    filler = drawn(recorded, signature.spec)  # rows that the eager step ran on
    forecast = Forecast(signature.rows, lambda: manifest["peak"])
    step = guarded(code, forecast)
    named = dict(model.named_parameters(remove_duplicate=False))
    compare(recorded, step, named, signature)
    if device.type == "cuda":
        step = guarded(_one_cuda_graph(code, signature, model, filler, manifest["waits"]), forecast)
    heap = hold_heap(manifest["peak"]) if manifest["device"] == "cpu" else None
    return LoadedStep(StepRunner(model, signature, step, filler, operands), manifest, heap)


def _signature(manifest: dict[str, Any], constants: dict[str, Tensor],
               device: torch.device) -> StepSignature:
    spec = tuple((tuple(shape), getattr(torch, dtype), device)
                 for shape, dtype, _ in manifest["batch"])
    inputs = {name: (kind, key) for name, kind, key in manifest["inputs"]}
    return StepSignature(inputs, constants, spec, manifest["rows"], tuple(manifest["order"]),
                         tuple(manifest["mutated"]), rule_from_json(manifest["clip"]))


def _one_cuda_graph(code: Step, signature: StepSignature, model: nn.Module, filler: Rows,
                    waits: list[str]) -> Step:
    """`code` as one CUDA graph, or as it is."""
    mask = torch.ones(signature.rows, dtype=torch.bool, device=signature.spec[0][2])
    rolled = tuple(x.roll(1, 0) for x in filler)
    tries = [("recorded rows", signature.of_model(model, rows, mask)) for rows in (filler, rolled)]
    return [*recorded_graph(code, tries[0][1], signature.stays, waits, tries), code][0]
