"""Time and memory of planning: from call to plan, on the meta device, each case in a process of its
own.

    python benchmarks/bench_planning.py [--cases resnet50 llama7b] [--rounds 3] [--output FILE]

`resnet50`: torchvision's, GroupNorm, 64 images of 224 pixels. `llama7b`: 32 blocks of width 4096
made of plain torch modules, 2 sequences of 2048 tokens. `*_budget`: the same under a budget of
memory that the free plan does not fit, which asks for the whole step's liveness. Seconds are of the
clock and of the processor: the first needs a quiet machine, the second and the peak of resident
memory do not.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import Record
from torch import Tensor, nn
from workloads import LOSS, Llama, group_norm

from fxperex.transform import outline

AIMS = {"resnet50": {"seconds": 5.0}, "llama7b": {"seconds": 60.0, "gib": 8.0}}
Case = Callable[[], tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]]


def _resnet50() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    from torchvision import models

    batch = torch.empty(64, 3, 224, 224), torch.empty(64, dtype=torch.long)
    return models.resnet50(norm_layer=group_norm), batch, {"loss": LOSS}


def _llama7b() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    ids = torch.empty(2, 2048, dtype=torch.long)
    return Llama(), (ids, ids.clone()), {"forward": _next_token}


def _next_token(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).transpose(1, 2), targets, reduction="none").mean(1)


CASES: dict[str, tuple[Case, str | None]] = {
    "resnet50": (_resnet50, None), "resnet50_budget": (_resnet50, "5GiB"),
    "llama7b": (_llama7b, None), "llama7b_budget": (_llama7b, "90GiB")
}


def plan(name: str) -> dict[str, Any]:
    """Returns one row: seconds from call to plan, clock and processor, and the process' peak
    resident memory.
    """
    make, memory = CASES[name]
    with torch.device("meta"):
        model, batch, how = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, spent = time.perf_counter(), time.process_time()
    made = outline(model, batch, **how, memory=memory, device=torch.device("cpu"))
    return {
        "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - spent,
        "parameters": sum(p.numel() for p in model.parameters()), "sites": len(made.plan.choices),
        "memory": memory, "budget": made.plan.budget and vars(made.plan.budget),
        "peak_predicted": made.plan.peak, "rss_before_gib": before / 2**20,
        "rss_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    }


def bench(name: str, rounds: int) -> dict[str, Any]:
    """Returns the row of the fastest of `rounds` processes: what other programs take from a clock
    only ever adds.
    """
    rows = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, __file__, "--one", name], check=True,
                              stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return min(rows,
               key=lambda row: row["seconds"]) | {"all_seconds": [row["seconds"] for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no new row "
                                                                    "begins; run again to go on")
    parser.add_argument("--output", type=Path,
                        default=Path(__file__).parent / "results" / "cpu" / "planning.json")
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(plan(args.one)))
        return
    record = Record(args.output, 60 * args.minutes, {"rounds": args.rounds})
    for name in record.missing(args.cases):
        row = bench(name, args.rounds)
        record.add(name, row)
        aim = ", ".join(f"{what} <= {most:g}" for what, most in AIMS.get(name, {}).items())
        print(f"{name:16} {row['seconds']:6.1f} s ({row['cpu_seconds']:.1f} s of processor), "
              f"{row['rss_peak_gib']:.2f} GiB, {row['sites']} "
              f"sites{'; aim ' + aim if aim else ''}", flush=True)


if __name__ == "__main__":
    main()
