"""What the ranks of a step decide together: the same program, the plan of rank 0, one backend."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.capture.program import Capture
from fxperex.clipping import Clip
from fxperex.errors import ConfigError
from fxperex.plan.plan import Plan
from fxperex.ranks import Ranks
from fxperex.ranks.shards import Shards
from fxperex.rewrite.passes.gather import gather
from fxperex.rewrite.passes.scatter import scatter
from fxperex.runtime.compiled import CompiledStep
from fxperex.runtime.signature import StepSignature


def check_alike(ranks: Ranks, model: nn.Module, captured: Capture, clip: Clip,
                asked: Mapping[str, object], shards: Shards | None = None) -> None:
    """Raises ConfigError, on every rank, unless all were given the same program and arguments, and
    hold the same parameters.
    """
    if ranks.size == 1:
        return
    with ranks.every("transform"):
        if captured.mutated:
            raise ConfigError(f"the forward writes the buffer {min(captured.mutated)!r} at every "
                              "physical batch, and how many a rank runs depends on their number. "
                              "Train in one process, or put the model in evaluation mode")
        facts = {"fxperex": metadata.version("fxperex"), "torch": torch.__version__,
                 "Python": platform.python_version(), "the clipping rule": repr(clip), **asked,
                 "the captured program": _digest(captured.main.graph.print_readable(False)),
                 "the shards": shards and (shards.size, shards.copies),
                 **({} if shards else values(model))}
    ranks.alike("what they transform", facts)


def values(model: nn.Module) -> dict[str, str]:
    """Returns a hash of each parameter and buffer of `model`."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {f"the values of {name!r}": hashlib.sha256(_bytes(t)).hexdigest() for name, t in named}


def backend_of(backend: str, shards: Shards | None) -> str:
    """Returns the backend to ask for. Raises ConfigError for one that a sharded step lacks.

    A sharded step is collective: ranks that time or compare it by themselves would wait in vain.
    """
    if shards is None or backend == "eager":
        return backend
    if backend == "auto":
        return "eager"
    raise ConfigError(f'a step with sharded parameters runs eagerly; got backend={backend!r}. Use '
                      '"auto" or "eager"')


def over_shards(graph: fx.GraphModule, signature: StepSignature, shards: Shards | None) -> None:
    """Makes `graph` one that gathers its parameters from `shards`, and reduces its sums to them."""
    if shards is not None:
        gather(graph, signature.parameters, shards)
        scatter(graph, len(signature.trained), shards)


def decided_plan(ranks: Ranks, make: Callable[[], Plan],
                 follow: Callable[[Plan], Plan]) -> Plan:
    """Returns the plan that rank 0 makes; `follow` turns it into one of this rank's own sites.

    Two ranks may measure differently, and their sums would then be rounded differently.
    """
    if ranks.size == 1:
        return make()
    plans: list[Plan] = []

    def chosen() -> str:
        plans.append(make())
        return plans[0].to_json()

    text = ranks.decided(chosen)
    with ranks.every("plan"):
        return plans[0] if plans else follow(Plan.from_json(text))


def decided_step(ranks: Ranks, compiled_by: Callable[[str], CompiledStep],
                 backend: str) -> CompiledStep:
    """Returns the step, on every rank by the backend that is fastest on rank 0; eager if a rank
    cannot have that.
    """
    if ranks.size == 1 or backend == "eager":
        with ranks.every("compile"):
            return compiled_by(backend)
    steps: list[CompiledStep] = []

    def fastest() -> str:
        steps.append(compiled_by(backend))
        return steps[0].compile()  # now: ranks that change at different steps would round apart

    name = ranks.decided(fastest)
    with ranks.every("compile"):
        step = steps[0] if steps else compiled_by(name)
        differs = step.backend != name
    if ranks.highest(int(differs)):
        with ranks.every("compile"):
            return compiled_by("eager")
    return step


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
