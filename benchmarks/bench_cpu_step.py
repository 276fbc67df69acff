"""The private step against the ordinary step on the CPU: one run, interleaved rounds, medians, ratios.

    python benchmarks/bench_cpu_step.py [--rounds 21] [--backends auto] [--output FILE]

The ordinary step is eager: forward, backward, no privacy. Every row checks its clipped sum against the float64
loop before it is timed. Writes JSON with device, versions and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import fxperex
from fxperex.testing import as_forward, clipped, error, loop

LOSS = nn.CrossEntropyLoss()
AIM = {"mlp": 1.05, "alexnet": 1.05, "resnet18": 1.4}
PEER = {"mlp": 1.29, "alexnet": 1.00, "resnet18": 1.65}


def workloads() -> dict[str, tuple[nn.Module, tuple[int, ...], int]]:
    """Returns {name: (model, input shape with the batch first, classes)}."""
    import torchvision

    mlp = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    resnet = torchvision.models.resnet18(norm_layer=lambda c: nn.GroupNorm(8, c), num_classes=10)
    return {"mlp": (mlp, (128, 784), 10),
            "alexnet": (torchvision.models.alexnet(dropout=0.0), (8, 3, 64, 64), 1000),
            "resnet18": (resnet, (16, 3, 32, 32), 10)}


def check(model: nn.Module, private: fxperex.PerExampleModule, x: torch.Tensor, y: torch.Tensor) -> float:
    """Returns the relative error of the clipped sum over the first rows; raises if it is above 1e-5."""
    rows = min(len(x), 4)
    truth = loop(model, as_forward(LOSS), (x[:rows], y[:rows]))
    total, _ = clipped(truth, 1.0)
    model.zero_grad()
    private.step(x[:rows], y[:rows])
    named = dict(model.named_parameters())
    off = error(torch.cat([named[n].grad.flatten() for n in total]), torch.cat([g.flatten() for g in total.values()]))
    if off > 1e-5:
        raise SystemExit(f"wrong gradient: relative error {off:.1e}")
    return off


def interleave(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Returns {name: seconds of each round}; every round runs every candidate once."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3):
        for run in runs.values():
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def bench(name: str, rounds: int, backends: list[str]) -> dict[str, object]:
    model, shape, classes = workloads()[name]
    x, y = torch.randn(shape), torch.randint(0, classes, (shape[0],))

    def ordinary() -> None:
        model.zero_grad(set_to_none=True)
        LOSS(model(x), y).backward()

    runs: dict[str, Callable[[], None]] = {"ordinary": ordinary}
    row: dict[str, object] = {"workload": name, "batch": shape[0], "aim": AIM[name], "best_peer_elsewhere": PEER[name]}
    for backend in backends:
        start = time.perf_counter()
        private = fxperex.transform(model, (x, y), LOSS, backend=backend)
        seconds = time.perf_counter() - start
        row[backend] = {"transform_seconds": round(seconds, 1), "ran_on": private.backend,
                        "error": check(model, private, x, y),
                        "strategies": {c.site.name: c.strategy for c in private.plan.choices}}

        def step(private: fxperex.PerExampleModule = private) -> None:
            model.zero_grad(set_to_none=True)
            private.step(x, y)

        runs[backend] = step
    times = interleave(runs, rounds)
    for backend in backends:
        ratios = [p / o for p, o in zip(times[backend], times["ordinary"], strict=True)]
        quarters = statistics.quantiles(ratios, n=4)
        entry = row[backend]
        assert isinstance(entry, dict)
        entry["ratio"] = statistics.median(times[backend]) / statistics.median(times["ordinary"])
        entry["ratio_quartiles"] = [quarters[0], quarters[2]]
        print(f"{name:10} {backend:9} ran on {entry['ran_on']:9} ratio {entry['ratio']:.3f} "
              f"[{quarters[0]:.3f}, {quarters[2]:.3f}]  aim {AIM[name]}  best peer {PEER[name]}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--backends", nargs="+", default=["auto"])
    parser.add_argument("--workloads", nargs="+", default=list(AIM))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu" / "step.json")
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rows = [bench(name, args.rounds, args.backends) for name in args.workloads]
    record = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "python": platform.python_version(),
              "device": platform.machine(), "threads": 2, "rounds": args.rounds, "rows": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
