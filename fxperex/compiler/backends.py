"""Step graph -> callable, by Inductor or eagerly.

Every step that is not eager is compared with the eager graph before its use (`check`).
`backend="auto"` compiles, times each candidate once on stand-in data, keeps the fastest, and
remembers it for this graph, device and versions. On a CPU images in channels-last layout are a
candidate too, and a candidate must be at least 5 % faster than the eager step. If Inductor is
missing or fails, the step runs eagerly and a BackendWarning says why. Inductor's own cache keeps
what it compiles on disk, for other processes.

On a GPU Inductor decides about channels-last by itself. It counts the operations of all
convolutions (from torch 2.15 on also of their backwards). All convolutions get that layout unless
grouped ones outweigh the others. In a plan of `vmap` convolutions they do, because each example is
a group.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxperex.compiler import backend_cache
from fxperex.compiler.check import Check, first_difference
from fxperex.compiler.cuda_graph import Recorder, device_of, host_waits, on, record, stuck
from fxperex.compiler.out_of_memory import ended
from fxperex.errors import BackendWarning, ConfigError
from fxperex.graph.step_graph import copied
from fxperex.rewrite.passes import channels_last, inline_custom_ops

Tries = Sequence[tuple[str, list[Tensor]]]  # (kind of rows, the step's inputs)

BACKENDS = ("auto", "inductor", "eager")
CHANNELS_LAST = "eager, channels last"  # what "auto" may find fastest beside them
# Of the eager step's time on a CPU: what gains less alone loses in a training loop (AlexNet laid
# out channels last took 1.19, eager 1.12 of the ordinary step; ResNet-18 at 32 pixels by Inductor
# 1.24, eager 1.18).
WORTH = 0.95
ROUNDS, SPEND = (
    10,
    60), 1.0  # at least and at most so many turns; no more than the least behind so many seconds
Step = Callable[..., Sequence[Any]]


def compile_step(graph: fx.GraphModule, inputs: list[Tensor], backend: str,
                 fixed: Sequence[bool] = (), check: Check | None = None,
                 tries: Tries | None = None) -> tuple[Step, str]:
    """Returns (callable, the backend it runs on). Raises ConfigError for an unknown backend.

    fixed: for each input, whether it stays at its address from call to call (parameters, buffers):
    a CUDA graph reads those in place and copies the rest. Empty means none.
    tries: (kind of rows, inputs like `inputs`) on which `check` compares what is not eager with the
    eager graph; what differs is not used, and a BackendWarning says how.
    """
    if backend not in (*BACKENDS, CHANNELS_LAST):
        raise ConfigError(f"unknown backend {backend!r}; valid: {', '.join(BACKENDS)}")
    runs = {"eager": _no_grad(graph)}
    if backend == "eager":
        return runs["eager"], "eager"
    check, tries = check or Check(graph), tries if tries is not None else [("the inputs at "
                                                                            "hand", inputs)]
    makers: dict[str, Callable[[], Sequence[Step]]] = {}
    may_lay_out = backend not in ("inductor", "eager") and not _on_gpu(inputs)
    may_lay_out = may_lay_out and not _draws_images(graph)
    if may_lay_out and (laid_out := channels_last(graph, fixed)) is not None:
        makers[CHANNELS_LAST] = lambda: [_no_grad(laid_out)]
    makers["inductor"] = lambda: _ways(graph, inputs, fixed, tries)
    # What another rank found fastest is as good as remembered.
    remembered = CHANNELS_LAST if backend == CHANNELS_LAST else None
    if backend == "auto":
        remembered = backend_cache.recall(graph, inputs)
    for name in makers if remembered not in runs | makers else [remembered]:
        if name in makers and (step := _trusted(name, makers[name], check, tries)) is not None:
            runs[name] = step
    if remembered in runs or backend == "inductor" or len(runs) == 1:
        name = remembered if remembered in runs else list(runs)[-1]
        return runs[name], name
    fastest = _fastest(_seconds(runs, inputs), 1.0 if _on_gpu(inputs) else WORTH)
    backend_cache.remember(graph, inputs, fastest)
    return runs[fastest], fastest


def _trusted(name: str, make: Callable[[], Sequence[Step]], check: Check,
             tries: Tries) -> Step | None:
    """The first of the ways to run by `name` that is as the eager step; None, and a warning, where
    none is.
    """
    try:
        ways = make()
    except Exception as error:  # a compiler fails in its own many ways; the step must not
        if ended(error) or isinstance(error, Warning):
            raise
        warnings.warn(
            BackendWarning("Inductor could not compile the step, it runs eagerly: "
                           f"{type(error).__name__}: "
                           f"{str(error).splitlines()[0] if str(error) else ''}"), stacklevel=4)
        return None
    for step, instead in zip(ways, [*["it runs without a CUDA "
                                      "graph"] * (len(ways) - 1), "it runs eagerly"], strict=True):
        text = first_difference(check, step, tries)
        if not text:
            return step
        warnings.warn(BackendWarning(f"the step by {name} is not the eager one, {instead}: "
                                     f"{text}"), stacklevel=4)
    return None


def _ways(graph: fx.GraphModule, inputs: list[Tensor], fixed: Sequence[bool],
          tries: Tries) -> list[Step]:
    """What Inductor makes of `graph`; on a GPU also recorded, which comes first."""
    run = _inductor(graph, inputs, fixed)
    return [*recorded(run, inputs, fixed, host_waits(graph), tries), run
            ] if _on_gpu(inputs) else [run]


def recorded(run: Step, inputs: Sequence[Tensor], fixed: Sequence[bool], waits: Sequence[str],
             tries: Tries, recorder: Recorder | None = None) -> list[Step]:
    """Returns `run` as one CUDA graph; nothing, and a BackendWarning, where it waits for the host
    or does not see its inputs.
    """
    if waits:
        warnings.warn(BackendWarning(f"the step runs without a CUDA graph: {waits[0]} waits for "
                                     "the host"), stacklevel=5)
        return []
    step = record(run, inputs, fixed or [False] * len(inputs), recorder)
    if len(tries) > 1 and stuck(step, run, tries[0][1], tries[-1][1]):
        warnings.warn(BackendWarning("the step runs without a CUDA graph: the recorded one gives "
                                     "the same outputs for two different inputs, as if it were "
                                     "empty"), stacklevel=5)
        return []
    return [step]


def _on_gpu(inputs: Sequence[Tensor]) -> bool:
    return bool(inputs) and inputs[0].is_cuda


def _random(graph: fx.GraphModule) -> list[fx.Node]:
    return [
        n for n in graph.graph.nodes
        if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())
    ]


def options(graph: fx.GraphModule) -> dict[str, Any]:
    """Returns Inductor's settings: random numbers are torch's own, as in the eager step; others
    could not be compared with it.
    """
    return {"fallback_random": True} if _random(graph) else {}


def _draws_images(graph: fx.GraphModule) -> bool:
    """True if random numbers fill images, which in another layout get other ones: nothing that
    could be compared.
    """
    values = [v for n in _random(graph) for v in tree_leaves(n.meta.get("val"))]
    return any(isinstance(v, Tensor) and v.dim() == 4 for v in values)


def _fastest(taken: dict[str, float], worth: float) -> str:
    """The name of what takes least; beside the eager step what takes at most `worth` of its
    time.
    """
    return min(taken, key=lambda name: taken[name] if name == "eager" else taken[name] / worth)


def _inductor(graph: fx.GraphModule, inputs: list[Tensor], fixed: Sequence[bool]) -> Step:
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Without an environment for shapes Inductor does not use its cache on disk; with one it takes
    # sizes for symbols, and compiles slow code that fits any of them, unless it is told otherwise.
    fakes = FakeTensorMode(shape_env=ShapeEnv())
    context = TracingContext(fakes)
    static = [fakes.from_tensor(x.detach(), static_shapes=True) for x in inputs]
    # The compiler takes the graph apart; the one people read stays whole.
    settings = {"fx_graph_cache": True} | options(graph)
    with torch.no_grad(), tracing(context), torch._inductor.config.patch(settings), on(
            device_of(inputs)):
        run = _no_grad(compile_fx(inline_custom_ops(copied(graph)), static))
        run(*inputs)  # compiles now, so that a failure is seen here
    return run


def _no_grad(call: Callable[..., Any]) -> Step:
    def run(*args: Tensor) -> Sequence[Any]:
        with torch.no_grad():
            return call(*args)

    return run


def _seconds(calls: dict[str, Step], inputs: list[Tensor]) -> dict[str, float]:
    """Returns seconds of every call, taken in turns: the eager call's median, the others' by their
    rounds' ratios to it.

    A machine that changes its speed changes both sides of a ratio; the least of each call may be of
    different minutes.
    """
    device = device_of(inputs)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    while len(times["eager"]) < ROUNDS[0] or (len(times["eager"]) < ROUNDS[1]
                                              and time.perf_counter() - begun < SPEND):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call(*inputs)
            wait()
            times[name].append(time.perf_counter() - start)
    eager = times["eager"][1:]  # the first round warms up
    base = statistics.median(eager)
    return {name: base * statistics.median(t / e for t, e in zip(rounds[1:], eager, strict=True))
            for name, rounds in times.items()}
