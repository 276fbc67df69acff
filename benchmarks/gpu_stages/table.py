"""The private step beside the ordinary one: eager, compiled in a CUDA graph, and under several
strategies, in turns.

The ratio is to the compiled ordinary step. A candidate's clipped sum is held to the float64 loop
before it is timed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import fxperex
from fxperex.capture.forward import as_forward
from fxperex.errors import FxperexError
from fxperex.testing import clipped, loop
from gpu_stages.architectures import Workload, workloads
from gpu_stages.clock import peak, quartiles, turns
from gpu_stages.rows import Rows
from gpu_stages.setting import TOLERANCE, Setting, precision

LOSS = nn.CrossEntropyLoss()
CHECKED = 3  # examples that the loop goes through
STRATEGIES = ("auto", "ghost", "fused_stored", "outer")
WARM = "compile"  # parts that only fill the compilers' caches, side by side
Call = Callable[[], Any]


def run(setting: Setting, part: str, rows: Rows) -> None:
    kind, _, name = part.partition(".")
    if kind == WARM:
        rows.run(name, compiled, workloads(setting.tiny)[name], setting)
        return
    for name, workload in workloads(setting.tiny).items():
        rows.run(name, measured, workload, setting, kind, partial(rows.update, name))
        gc.collect()
        if setting.on_gpu:
            torch.cuda.empty_cache()


def compiled(workload: Workload, setting: Setting) -> dict[str, Any]:
    """Compiles the two steps that every table has, for its first dtype, and throws them away."""
    with precision("tf32"):
        side = Side(workload, setting, None)
        side.compiled()
        side.transformed("auto")
    return {}


def measured(
    workload: Workload, setting: Setting, dtype: str, keep: Callable[[Any], None]
) -> dict[str, Any]:
    """Returns {"candidates": {name: seconds [low, median, high], ratio, peak bytes, seconds to the
    first step}}."""
    facts: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    with precision(dtype) as autocast:
        side = Side(workload, setting, autocast)
        for name in ("ordinary", "compiled", *STRATEGIES[:1 if setting.tiny else None]):
            facts[name] = {}
            calls |= side.candidate(name, facts[name], TOLERANCE[dtype])
            keep({"candidates": facts})
        for name, times in turns(calls, setting).items():
            facts[name]["seconds"] = quartiles(times)
        for name, call in calls.items():
            facts[name]["peak_bytes"] = peak(call, setting)
        if "compiled" in calls:
            for name in calls:
                medians = [facts[n]["seconds"][1] for n in (name, "compiled")]
                facts[name]["ratio"] = medians[0] / medians[1]
    wrong = [f"{name}: {candidate['why']}" for name, candidate in facts.items()
             if not candidate.get("error", 0.0) <= TOLERANCE[dtype]]
    return {"candidates": facts, "wrong": wrong,
            "parameters": sum(p.numel() for p in side.model.parameters())}


class Side:
    """One workload on the device, its truth, and its candidates."""

    def __init__(self, workload: Workload, setting: Setting, autocast: torch.dtype | None) -> None:
        torch.manual_seed(0)
        self.setting, self.autocast = setting, autocast
        self.model = workload.make().to(setting.device)
        self.batch = tuple(x.to(setting.device) for x in workload.batch())
        self.truth = cache(
            lambda: self._flat(clipped(loop(self.model, as_forward(LOSS), self._rows()), 1.0)[0])
        )

    def _rows(self) -> tuple[Tensor, ...]:
        return tuple(x[:CHECKED] for x in self.batch)

    def candidate(self, name: str, facts: dict[str, Any], limit: float) -> dict[str, Call]:
        """Returns {name: its call}, or nothing, with the reason in `facts`: another candidate's
        trouble is its own."""
        start = time.perf_counter()
        try:
            if name in ("ordinary", "compiled"):
                call = self.ordinary(self.model) if name == "ordinary" else self.compiled()
            else:
                call = self.private(name, facts)
                self.setting.wait()
            call()
            self.setting.wait()
            facts["first"] = round(time.perf_counter() - start, 2)
            if facts.get("error", 0.0) <= limit:
                return {name: call}
            facts["why"] = f"wrong gradient: off by {facts['error']:.1e}; not timed"
        except (FxperexError, RuntimeError) as problem:
            facts["why"] = f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"
            if "CUDA error" in facts["why"]:
                raise
        return {}

    def ordinary(self, forward: nn.Module) -> Call:
        x, y = self.batch

        def step() -> None:
            self.model.zero_grad(set_to_none=True)
            with torch.autocast(
                self.setting.device.type, self.autocast, enabled=self.autocast is not None
            ):
                loss = LOSS(forward(x), y)
            loss.backward()

        return step

    def compiled(self) -> Call:
        """Returns forward and backward of `torch.compile`, on a GPU recorded as one CUDA graph."""
        backend = "inductor" if self.setting.backend == "inductor" else "aot_eager"
        step = self.ordinary(torch.compile(self.model, backend=backend))  # type: ignore[arg-type]
        step()
        if not self.setting.on_gpu:
            return step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        self.model.zero_grad(set_to_none=True)
        return graph.replay

    def transformed(self, strategy: str) -> fxperex.PerExampleModule:
        return fxperex.transform(self.model, self.batch, LOSS, strategy=strategy,
                                 autocast=self.autocast, backend=self.setting.backend)

    def private(self, strategy: str, facts: dict[str, Any]) -> Call:
        """Returns the compiled private step; puts its plan and its error into `facts`."""
        private = self.transformed(strategy)
        facts["strategies"] = {c.site.name: c.strategy for c in private.plan.choices}
        if strategy != "auto" and strategy not in facts["strategies"].values():
            raise RuntimeError(f"{strategy} is legal nowhere")
        sums = private.sums(*self._rows())[1]
        facts |= {"ran_on": private.backend, "predicted_ms": 1e3 * private.plan.seconds,
                  "error": self._off(dict(zip(private.parameters, sums, strict=True)))}

        def step() -> None:
            self.model.zero_grad(set_to_none=True)
            private.step(*self.batch)

        return step

    def _off(self, sums: dict[str, Tensor]) -> float:
        exact = self.truth()
        return float((self._flat(sums) - exact).norm() / exact.norm())

    def _flat(self, tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensors[n].double().flatten() for n, _ in self.model.named_parameters()])
