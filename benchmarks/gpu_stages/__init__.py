"""The stages of `gpu_run.py`, in their order: what each is, for how long, in which processes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Phase:
    """`parts` that run side by side, at most `jobs` processes, until this share of the stage's time
    is gone."""

    parts: tuple[str, ...]
    jobs: int = 1
    until: float = 1.0


ALL = (Phase(("all",)),)
KERNELS = tuple(f"{family}.{dtype}"
                for family in ("linear", "conv", "gram", "embedding", "affine", "weighted")
                for dtype in ("float32", "bfloat16", "float16"))
MODELS = ("conv", "depthwise", "transposed", "norms", "attention", "tied", "lstm", "lora")
GRAPHS = ("batches", "memory", "package", "index")
WORKLOADS = ("resnet18", "gpt2", "vit", "vgg16", "alexnet", "resnet50", "bert")


@dataclass(frozen=True)
class Stage:
    """`module` has `run(setting, part, rows)`; its `phases` run one after the other, `rehearsed` in
    their place with small shapes. `limit`: seconds at most; `reserve`: left by earlier ones."""

    module: str
    limit: float
    phases: tuple[Phase, ...] = ALL
    rehearsed: tuple[Phase, ...] = ALL
    reserve: float = 0.0

    def run(self, *arguments: Any) -> None:
        """Loads its module, which only a process of the stage needs: torch and this library."""
        importlib.import_module(f"gpu_stages.{self.module}").run(*arguments)


STAGES = {
    "machine": Stage("machine", 40),
    "kernels": Stage("kernels", 100, (Phase(("chacha", *KERNELS), 14, 0.8), Phase(("memcheck",)))),
    "steps": Stage("steps", 110, (Phase(MODELS, 8),), (Phase(("conv", "tied")),)),
    "graph": Stage("graph", 60, (Phase(GRAPHS, 4),), (Phase(GRAPHS),)),
    "engine": Stage("engine", 90),
    "calibrate": Stage("calibration", 60),
    # The first phase fills the compilers' caches, side by side.
    "table": Stage("table", 300, (Phase(tuple(f"compile.{name}" for name in WORKLOADS), 4, 0.3),
                                  Phase(("tf32",), 1, 0.75), Phase(("bfloat16",))),
                   (Phase(("tf32",)),), reserve=120),
    "traces": Stage("traces", 60, reserve=40),
}


def seconds(name: str, chosen: list[str], remaining: float, tiny: bool) -> float:
    """Returns the time limit of a stage of those `chosen` with `remaining` seconds for it and all
    after it."""
    reserved = sum(STAGES[n].reserve for n in chosen[chosen.index(name) + 1:])
    # The machine of a rehearsal may be slow, and has no card to give back.
    return remaining if tiny else max(min(STAGES[name].limit, remaining - reserved), 0.0)
