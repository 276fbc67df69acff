"""Step graph -> callable, by Inductor or eagerly.

`backend="auto"` compiles, times both once on stand-in data and keeps the faster. If Inductor is missing or fails
the step runs eagerly and a BackendWarning says why; never silently.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.errors import BackendWarning, ConfigError

BACKENDS = ("auto", "inductor", "eager")
Step = Callable[..., Sequence[Any]]


def compile_step(graph: fx.GraphModule, inputs: list[Tensor], backend: str) -> tuple[Step, str]:
    """Returns (callable, the backend it runs on). Raises ConfigError for an unknown backend."""
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}; valid: {', '.join(BACKENDS)}")
    eager = _no_grad(graph)
    if backend == "eager":
        return eager, "eager"
    try:
        compiled = _inductor(graph, inputs)
    except Exception as error:  # a compiler fails in its own many ways; the step must not
        warnings.warn(BackendWarning(f"Inductor could not compile the step, it runs eagerly: {type(error).__name__}: "
                                     f"{str(error).splitlines()[0] if str(error) else ''}"), stacklevel=3)
        return eager, "eager"
    if backend == "auto" and _seconds(eager, inputs) < _seconds(compiled, inputs):
        return eager, "eager"
    return compiled, "inductor"


def _inductor(graph: fx.GraphModule, inputs: list[Tensor]) -> Step:
    from torch._inductor.compile_fx import compile_fx

    options = {"triton.cudagraphs": True} if inputs and inputs[0].is_cuda else {}
    # The compiler takes the graph apart; the one people read stays whole.
    copy = fx.GraphModule(graph, _copied(graph.graph))
    with torch.no_grad(), torch._inductor.config.patch(options):
        compiled = compile_fx(copy, [x.detach() for x in inputs])
        run = _no_grad(compiled)
        run(*inputs)  # compiles now, so that a failure is seen here
    return run


def _copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        made[node] = new.node_copy(node, made.__getitem__)
    return new


def _no_grad(call: Callable[..., Any]) -> Step:
    def run(*args: Tensor) -> Sequence[Any]:
        with torch.no_grad():
            return call(*args)

    return run


def _seconds(call: Step, inputs: list[Tensor], repeats: int = 3) -> float:
    def wait() -> None:
        if inputs and inputs[0].is_cuda:
            torch.cuda.synchronize()

    call(*inputs)
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call(*inputs)
        wait()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]
