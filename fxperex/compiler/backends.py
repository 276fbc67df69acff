"""Step graph -> callable, by Inductor or eagerly.

`backend="auto"` compiles, times what there is once on stand-in data (on a CPU also images laid out channels last), keeps
the fastest and remembers it for this graph, device and versions; on a CPU what is not eager has to gain a twentieth. If
Inductor is missing or fails the step runs eagerly and a BackendWarning says why; never silently. What Inductor compiles is kept
on disk by its own cache: a second process loads it.

Channels-last on a GPU is Inductor's decision, and none is made here: it compiles a step as it does inference, where it counts
the operations of all convolutions (from torch 2.15 on those of `convolution_backward` too) and gives all of them that layout
unless grouped ones with several input channels a group outweigh the rest. A plan of `vmap` convolutions, whose groups are
the examples, does that.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.compiler import choice
from fxperex.compiler.replay import host_waits, record
from fxperex.errors import BackendWarning, ConfigError
from fxperex.passes import channels_last, plainly
from fxperex.step_graph import copied

BACKENDS = ("auto", "inductor", "eager")
CHANNELS_LAST = "eager, channels last"  # what "auto" may find fastest beside them
# Of the eager step's time on a CPU: what gains less alone loses in a training loop (AlexNet laid out channels last took 1.19,
# eager 1.12 of the ordinary step; ResNet-18 at 32 pixels by Inductor 1.24, eager 1.18).
WORTH = 0.95
ROUNDS, SPEND = (10, 60), 1.0  # at least and at most so many turns; no more than the least behind so many seconds
Step = Callable[..., Sequence[Any]]


def compile_step(graph: fx.GraphModule, inputs: list[Tensor], backend: str,
                 fixed: Sequence[bool] = ()) -> tuple[Step, str]:
    """Returns (callable, the backend it runs on). Raises ConfigError for an unknown backend.

    fixed: for each input, whether it stays at its address from call to call (parameters, buffers): a CUDA graph
    reads those in place and copies the rest. Empty means none.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}; valid: {', '.join(BACKENDS)}")
    runs = {"eager": _no_grad(graph)}
    if backend == "eager":
        return runs["eager"], "eager"
    if backend == "auto" and not (inputs and inputs[0].is_cuda) and (other := channels_last(graph, fixed)) is not None:
        runs[CHANNELS_LAST] = _no_grad(other)
    known = choice.recall(graph, inputs) if backend == "auto" else None
    if known in runs:
        return runs[known], known
    try:
        runs["inductor"] = _inductor(graph, inputs, fixed)
    except Exception as error:  # a compiler fails in its own many ways; the step must not
        warnings.warn(BackendWarning(f"Inductor could not compile the step, it runs eagerly: {type(error).__name__}: "
                                     f"{str(error).splitlines()[0] if str(error) else ''}"), stacklevel=3)
        return runs["eager"], "eager"
    if backend == "inductor" or known == "inductor":
        return runs["inductor"], "inductor"
    fastest = _fastest(_seconds(runs, inputs), WORTH if inputs and not inputs[0].is_cuda else 1.0)
    choice.remember(graph, inputs, fastest)
    return runs[fastest], fastest


def _fastest(taken: dict[str, float], worth: float) -> str:
    """The name of what takes least; beside the eager step what takes at most `worth` of its time."""
    return min(taken, key=lambda name: taken[name] if name == "eager" else taken[name] / worth)


def _inductor(graph: fx.GraphModule, inputs: list[Tensor], fixed: Sequence[bool]) -> Step:
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Without an environment for shapes Inductor does not use its cache on disk; with one it takes sizes for symbols, and
    # compiles slow code that fits any of them, unless it is told otherwise.
    fakes = FakeTensorMode(shape_env=ShapeEnv())
    context = TracingContext(fakes)
    static = [fakes.from_tensor(x.detach(), static_shapes=True) for x in inputs]
    # The compiler takes the graph apart; the one people read stays whole.
    with torch.no_grad(), tracing(context), torch._inductor.config.patch({"fx_graph_cache": True}):
        run = _no_grad(compile_fx(plainly(copied(graph)), static))
    run(*inputs)  # compiles now, so that a failure is seen here
    if not inputs or not inputs[0].is_cuda:
        return run
    waits = host_waits(graph)
    if waits:
        warnings.warn(BackendWarning(f"the step runs without a CUDA graph: {waits[0]} waits for the host"), stacklevel=4)
        return run
    return record(run, inputs, fixed or [False] * len(inputs))


def _no_grad(call: Callable[..., Any]) -> Step:
    def run(*args: Tensor) -> Sequence[Any]:
        with torch.no_grad():
            return call(*args)

    return run


def _seconds(calls: dict[str, Step], inputs: list[Tensor]) -> dict[str, float]:
    """Returns seconds of every call, taken in turns: the eager call's median, the others' by their rounds' ratios to it.

    A machine that changes its speed changes both sides of a ratio; the least of each call may be of different minutes.
    """
    def wait() -> None:
        if inputs and inputs[0].is_cuda:
            torch.cuda.synchronize()

    taken: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    while len(taken["eager"]) < ROUNDS[0] or (len(taken["eager"]) < ROUNDS[1] and time.perf_counter() - begun < SPEND):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call(*inputs)
            wait()
            taken[name].append(time.perf_counter() - start)
    eager = taken["eager"][1:]  # the first round warms up
    base = statistics.median(eager)
    return {name: base * statistics.median(t / e for t, e in zip(each[1:], eager, strict=True)) for name, each in taken.items()}
