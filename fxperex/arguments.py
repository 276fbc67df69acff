"""What the user hands to `transform`, checked before anything is traced. Each check raises an
FxperexError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxperex.analysis import Analysis
from fxperex.capture.cuda_autocast import Elsewhere
from fxperex.capture.distributed import refuse_distributed
from fxperex.capture.forward import as_forward
from fxperex.capture.program import Capture
from fxperex.capture.source_lines import source_line
from fxperex.capture.structure import BatchStructure, as_arguments, taken_apart
from fxperex.compiler import BACKENDS
from fxperex.errors import ConfigError, CoverageError, ShapeError
from fxperex.graph.aten import packet
from fxperex.plan.byte_sizes import parse_memory
from fxperex.plan.plan import Plan
from fxperex.planner.planner import check_rows
from fxperex.runtime.batches import check_dense

# Operations whose operands must be of one dtype when they run; on values without storage they do
# not say so.
PRODUCTS = {
    "linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "addmv", "mv", "dot", "conv1d",
    "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "scaled_dot_product_attention", "bilinear", "einsum"
}


@dataclass(frozen=True)
class Request:
    """What `transform` was asked for, after all checks.

    forward: `forward(model, *tensors) -> loss`, under autocast if that was asked for.
    structure: of the batch; tensors: what it holds, which are all that later stages see.
    trainable: the parameters that are trained, each by its first name; frozen: the others.
    rows: of one step, None if the planner is to choose; logical: examples of the batch.
    batch_device: where the batch is; device: where the step is to run.
    elsewhere: stand-ins on `device` for an autocast that the meta device does not have.
    """

    forward: Callable[..., Tensor]
    structure: BatchStructure
    tensors: tuple[Tensor, ...]
    trainable: set[str]
    frozen: tuple[str, ...]
    strategy: str | Mapping[str, str] | Plan
    memory: int | None
    rows: int | None
    logical: int
    batch_device: torch.device
    device: torch.device
    elsewhere: Elsewhere | None

    @property
    def capture_rows(self) -> int:
        """Examples that the program is captured with."""
        return self.logical if self.rows is None else self.rows

    @property
    def described(self) -> dict[str, object]:
        """What ranks that train together must have been asked for alike."""
        strategy = self.strategy.to_json() if isinstance(self.strategy, Plan) else self.strategy
        return {"the structure of a batch": str(self.structure), "strategy": strategy,
                "memory": self.memory, "physical_batch": self.rows, "the device": self.device.type,
                "trained": sorted(self.trainable),
                "the rows of a captured batch": self.capture_rows}

    def with_plan(self, plan: Plan) -> Request:
        """Returns the Request that asks for `plan` as it is."""
        return replace(self, strategy=plan, rows=plan.rows, memory=None)

    @property
    def measures(self) -> bool:
        """True if strategies are to be timed on the device."""
        return self.strategy == "measure" and self.batch_device.type != "meta"

    def same_random_state(self) -> AbstractContextManager[Any]:
        """After it torch's generators are as they were before."""
        gpus = [self.batch_device] if self.batch_device.type == "cuda" else []
        return torch.random.fork_rng(devices=gpus)


def request(model: object, batch: Any, loss: Callable[..., Any] | None,
            forward: Callable[..., Tensor] | None, strategy: str | Mapping[str, str] | Plan,
            memory: int | str | None, physical_batch: int | str | None,
            autocast: torch.dtype | None, device: torch.device | None = None) -> Request:
    """Returns the Request of these arguments of `transform` (`device`: of `outline`). Raises as
    `transform`.
    """
    check_strategy(strategy)
    budget = parse_memory(memory)
    structure, tensors, together = taken_apart(batch)
    batch_device = check_batch(tensors, structure)
    trainable = check_model(model, batch_device)
    rows = _rows(physical_batch, tensors)
    if loss is not None and forward is not None:
        raise ConfigError("give loss or forward, not both")
    check_callable(loss, "loss")
    check_callable(forward, "forward")
    if isinstance(strategy, Plan):
        rows = check_rows(strategy, None if physical_batch is None else rows)
    plain = _of_tensors(forward or as_forward(loss), together)
    run = _under_autocast(plain, autocast, device or batch_device)
    stands_in = autocast and device and batch_device.type == "meta"
    elsewhere = Elsewhere(device, batch_device) if stands_in and device else None
    frozen = tuple(n for n, p in model.named_parameters()
                   if not p.requires_grad and n not in trainable)
    return Request(run, structure, tensors, trainable, frozen, strategy, budget, rows,
                   max(len(tensors[0]), 1), batch_device, device or batch_device, elsewhere)


def check_batch(batch: tuple[Tensor, ...], structure: BatchStructure) -> torch.device:
    """Returns the device of the tensors of a batch. Raises ShapeError unless they are dense, with
    as many examples each.
    """
    for name, x in zip(structure.names, batch, strict=True):
        check_dense(x, name)
        if x.dim() == 0:
            raise ShapeError(f"the batch tensor {name} has no dimensions; every tensor needs the "
                             "examples in dimension 0")
    if len({len(x) for x in batch}) != 1:
        raise ShapeError("batch tensors have different numbers of examples: "
                         f"{[list(x.shape) for x in batch]}. A batch of graphs in flat form has "
                         "no place for each example: pad them, with one adjacency matrix each")
    if len({x.device for x in batch}) != 1:
        raise ShapeError("batch tensors are on different devices: "
                         f"{[str(x.device) for x in batch]}")
    return batch[0].device


def check_model(model: object, device: torch.device) -> set[str]:
    """Returns the trainable parameters of `model`, each by its first name.

    Raises ConfigError for what is no module on `device`, CoverageError if nothing can be trained.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    refuse_distributed(model)
    trainable = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    if not trainable:
        raise CoverageError("the model has no trainable parameter (requires_grad=True): nothing "
                            "to train privately")
    for name, p in trainable.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise CoverageError(f"parameter {name!r} is lazy and has no shape yet; run the model "
                                "once first")
        if not p.dtype.is_floating_point:
            raise CoverageError(f"parameter {name!r} has dtype {p.dtype}; per-example gradients "
                                "need real floating point")
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.device != device:
            raise ConfigError(f"the batch is on {device}, {name!r} on {t.device}; move the model "
                              "or the batch")
    first_names = {id(p): n for n, p in reversed(list(trainable.items()))}
    return set(first_names.values())


def check_strategy(strategy: object) -> None:
    """Raises ConfigError unless `strategy` is a name, {glob: name} or a Plan."""
    named = isinstance(strategy, Mapping) and all(
        isinstance(x, str) for pair in strategy.items() for x in pair)
    if not isinstance(strategy, str | Plan) and not named:
        raise ConfigError("strategy must be 'auto', 'measure', a strategy's name, {glob of "
                          "parameter names: name} or a Plan; "
                          f"got {strategy!r}")


def check_callable(value: object, name: str) -> None:
    """Raises ConfigError unless `value` is None or can be called."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name} must be a function; got {value!r}")


def check_backend(backend: object) -> None:
    """Raises ConfigError unless `backend` is the name of a backend."""
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}; valid: {', '.join(BACKENDS)}")


def check_trains(analysis: Analysis) -> None:
    """Raises CoverageError if no trainable parameter meets the batch."""
    if not analysis.sites:
        raise CoverageError("the loss does not depend on any trainable parameter of the model")


def check_dtypes(capture: Capture, structure: BatchStructure) -> None:
    """Raises ShapeError for a product of two dtypes, which would fail when it runs."""
    nodes = capture.main.nodes
    for node in nodes:
        if node.op != "call_function" or packet(node) not in PRODUCTS:
            continue
        values = [v for v in map(_value, node.all_input_nodes) if isinstance(v, Tensor)]
        dtypes = dict.fromkeys(v.dtype for v in values if v.is_floating_point())
        if len(dtypes) > 1:
            inputs = [(capture.inputs[n.name], n) for n in nodes if n.op == "placeholder"]
            batch = [f"{structure.names[key]} is {_value(n).dtype}"
                     for (kind, key), n in inputs if kind == "batch"]
            raise ShapeError(f"{node.target} at {source_line(node)} takes "
                             f"{' and '.join(map(str, dtypes))}; {', '.join(batch)}. Convert the "
                             "batch to the model's dtype, or use autocast=")


def _rows(physical_batch: int | str | None, batch: tuple[Tensor, ...]) -> int | None:
    """Rows of one step, None if the planner is to choose."""
    if physical_batch is None:
        return max(len(batch[0]), 1)
    if physical_batch == "auto":
        return None
    if not isinstance(physical_batch, int) or physical_batch < 1 or physical_batch is True:
        raise ConfigError("physical_batch must be 'auto' or a whole number of rows above 0; got "
                          f"{physical_batch!r}")
    return physical_batch


def _of_tensors(run: Callable[..., Tensor],
                together: Callable[[tuple[Tensor, ...]], Any]) -> Callable[..., Tensor]:
    """`run(model, *batch)` as a function of the batch's tensors in a row."""
    return lambda model, *tensors: run(model, *as_arguments(together(tensors)))


def _under_autocast(run: Callable[..., Tensor], dtype: torch.dtype | None,
                    device: torch.device) -> Callable[..., Tensor]:
    if dtype is None:
        return run
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"autocast must be torch.bfloat16 or torch.float16; got {dtype!r}")

    def cast(model: nn.Module, *batch: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            return run(model, *batch)

    return cast


def _value(node: Any) -> Any:
    return next(iter(pytree.tree_leaves(node.meta.get("val"))), None)
