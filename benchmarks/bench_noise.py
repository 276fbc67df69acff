"""What noise costs: nanoseconds a number, and a whole logical step beside one of ordinary training.

    python benchmarks/bench_noise.py [--rows 256] [--rounds 5] [--backend inductor|eager] [--only
    numbers resnet18 mlp]

`numbers`: each sampler draws in turn, the former ones (one thread) among them; wall and CPU
nanoseconds a number. A model: the logical step (clipped sums of all rows, noise, update) in turn
with the ordinary one (forward and backward of the same parts, `optimizer.step()`); the private
step's parts are timed apart. What a run folder and the check of the parameters add is timed beside
it and is not in the step. On the CPU, with torch's own number of threads. Rows are written as they
are done; run again to go on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch loads its threads

import argparse
import hashlib
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import former_noise
import torch
from record import Record
from torch import Tensor, nn
from workloads import group_norm

import fxperex
from fxperex.privacy import Mechanism, Noise, Secret
from fxperex.privacy.noise.discrete import discrete_gaussian
from fxperex.privacy.noise.normal import gaussian

COUNT, DISCRETE_COUNT = 2**22, 2**19
SIGMA = 3.5e9  # that of the grid of 11 million coordinates
LOSS = nn.CrossEntropyLoss()
OUT = Path(__file__).parent / "results/cpu/noise.json"
WIDTH = 5000
Batch = tuple[Tensor, Tensor]
Turn = tuple[float, float]  # wall seconds, CPU seconds


def resnet18() -> tuple[nn.Module, Callable[[int], Batch], int]:
    from torchvision import models

    model = models.resnet18(norm_layer=group_norm, num_classes=10)
    return model, lambda rows: (torch.randn(rows, 3, 32, 32), torch.randint(10, (rows,))), 16


def mlp() -> tuple[nn.Module, Callable[[int], Batch], int]:
    """100 million parameters with few operations each: the model for which noise weighs most."""
    hidden = [layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), *hidden,
                          nn.Linear(WIDTH, WIDTH // 2), nn.ReLU(),
                          nn.Linear(WIDTH // 2, 4096), nn.Linear(4096, 10))
    return model, lambda rows: (torch.randn(rows, 784), torch.randint(10, (rows,))), 64


MODELS = {"resnet18": resnet18, "mlp": mlp}
ROWS = ["numbers", *MODELS]


def timed(call: Callable[[], object]) -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def medians(turns: list[Turn], scale: float) -> dict[str, float]:
    wall, cpu = (statistics.median(t) for t in zip(*turns, strict=True))
    lowest = min(turn[1] for turn in turns)
    return {key: round(value * scale, 3)
            for key, value in (("wall", wall), ("cpu", cpu), ("least cpu", lowest))}


def numbers(rounds: int) -> dict[str, Any]:
    """Returns nanoseconds a number of every sampler, medians of interleaved rounds."""
    secure, fast = Secret().streams("noise"), Secret(1).streams("noise")
    step = itertools.count()
    runs: Mapping[str, tuple[int, Callable[[], object]]] = {
        "gaussian, secure": (COUNT, lambda: gaussian(secure, COUNT, next(step))),
        "gaussian, secure, before": (COUNT, lambda: former_noise.gaussian(secure, COUNT)),
        "gaussian, Philox": (COUNT, lambda: gaussian(fast, COUNT, next(step))),
        "gaussian, Philox, before": (COUNT, lambda: former_noise.gaussian(fast, COUNT)),
        "discrete, secure": (
            DISCRETE_COUNT,
            lambda: discrete_gaussian(SIGMA, DISCRETE_COUNT, secure, next(step))),
        "discrete, secure, before": (
            DISCRETE_COUNT, lambda: former_noise.discrete_gaussian(SIGMA, DISCRETE_COUNT, secure)),
        "torch.randn, float32": (COUNT, lambda: torch.randn(COUNT)),
        "torch.randn, float64": (COUNT, lambda: torch.randn(COUNT, dtype=torch.float64))}
    turns: dict[str, list[Turn]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, (_, call) in runs.items():
            value = timed(call)
            turns[name] += [value] if turn else []
    return {name: medians(turns[name], 1e9 / count) for name, (count, _) in runs.items()}


class Private:
    """The logical step of one model, its phases apart."""

    def __init__(self, model: nn.Module, batch: Batch, part: int, backend: str) -> None:
        self.parts = list(zip(*(x.split(part) for x in batch), strict=True))
        self.private = fxperex.transform(model, self.parts[0], LOSS, clip=1.0, backend=backend)
        self.private.compile()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        size = sum(p.numel() for p in self.private.parameters.values())
        self.noise, self.discrete = (
            Noise(Mechanism(self.private.clip, 1.0, "add-or-remove", len(batch[0]), size, kind),
                  Secret())
            for kind in ("gaussian", "discrete"))
        self.steps = itertools.count()
        self.phases: dict[str, list[Turn]] = {name: [] for name in ("clip", "noise", "update")}
        self.sums: list[Tensor] = []

    def step(self) -> None:
        self.phases["clip"].append(timed(self._clip))
        self.phases["noise"].append(timed(self._noise))
        self.phases["update"].append(timed(self._update))

    def _clip(self) -> None:
        self.sums = []
        for part in self.parts:
            _, sums = self.private.sums(*part)
            pairs = zip(self.sums, sums, strict=True)
            self.sums = [a.add_(b) for a, b in pairs] if self.sums else sums

    def _noise(self) -> None:
        self.means = self.noise.release(self.sums, next(self.steps))

    def discrete_noise(self) -> None:
        self.discrete.release(self.sums, next(self.steps))

    def _update(self) -> None:
        for p, mean in zip(self.private.parameters.values(), self.means, strict=True):
            p.grad = mean.to(p.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def beside(self) -> dict[str, Turn]:
        """What the engine adds to a step: the hash of the sums that a folder keeps, and the check
        that all is finite."""
        hashed = hashlib.blake2b(key=bytes(32), digest_size=32)
        parameters = self.private.parameters.values()
        return {"hash of the sums, with a folder":
                    timed(lambda: [hashed.update(s.numpy()) for s in self.sums]),
                "parameters are finite":
                    timed(lambda: [bool(torch.isfinite(p).all()) for p in parameters])}


def ordinary(model: nn.Module, batch: Batch, part: int) -> Callable[[], None]:
    """Returns the ordinary step: gradients added up over the same parts, and an update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    parts = list(zip(*(x.split(part) for x in batch), strict=True))

    def run() -> None:
        for x, y in parts:
            LOSS(model(x), y).mul(len(y) / len(batch[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def logical_step(name: str, rows: int, rounds: int, backend: str) -> dict[str, Any]:
    """Returns seconds of both steps and of the private one's phases, medians of interleaved rounds,
    and their ratio.

    The private step has Gaussian noise. Discrete noise on the same sums is timed beside it, and
    exchanged in its ratio.
    """
    torch.manual_seed(0)
    model, make, part = MODELS[name]()
    batch = make(rows)
    plain = ordinary(model, batch, part)
    private = Private(model, batch, part, backend)
    turns: dict[str, list[Turn]] = {"ordinary": [], "private": [], "discrete noise": []}
    for turn in range(rounds + 1):
        calls = {"ordinary": plain, "private": private.step,
                 "discrete noise": private.discrete_noise}
        for key, call in calls.items():
            value = timed(call)
            turns[key] += [value] if turn else []
    phases = {key: times[1:] for key, times in private.phases.items()}
    return {"parameters": sum(p.numel() for p in model.parameters()), "rows": rows, "part": part,
            "seconds": {key: medians(times, 1) for key, times in (turns | phases).items()},
            "ratio": ratios(turns["ordinary"], turns["private"]),
            "ratio, discrete": ratios(turns["ordinary"], [
                (p[0] - n[0] + d[0], p[1] - n[1] + d[1]) for p, n, d in
                zip(turns["private"], phases["noise"], turns["discrete noise"], strict=True)]),
            "beside": {key: medians([times], 1) for key, times in private.beside().items()}}


def ratios(below: list[Turn], above: list[Turn]) -> dict[str, float]:
    """Returns the medians of the rounds' own ratios."""
    rounds = [[a[i] / b[i] for a, b in zip(above, below, strict=True)] for i in (0, 1)]
    return {"wall": round(statistics.median(rounds[0]), 3),
            "cpu": round(statistics.median(rounds[1]), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", default="inductor", choices=["inductor", "eager"])
    parser.add_argument("--only", nargs="*", default=ROWS, choices=ROWS)
    parser.add_argument("--limit", type=float, default=240, help="seconds; no row begins later")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    settings = {"rows": chosen.rows, "rounds": chosen.rounds, "backend": chosen.backend}
    record = Record(chosen.out, chosen.limit, settings)
    for name in record.missing(chosen.only):
        load = round(os.getloadavg()[0], 1)
        row = (numbers(chosen.rounds) if name == "numbers"
               else logical_step(name, chosen.rows, chosen.rounds, chosen.backend))
        record.add(name, {"load before": load, **row})
        print(name, row, flush=True)


if __name__ == "__main__":
    main()
