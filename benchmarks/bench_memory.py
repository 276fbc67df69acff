"""Predicted against measured peak memory of the step, for every workload under its `auto` plan.

    python benchmarks/bench_memory.py [--workloads resnet18 decoder] [--strategies auto crb]
    [--quick] [--minutes 20]

Measured: every allocation and release of torch's allocator during one eager step, as its profiler
records them, summed up in order; parameters, buffers and batch, which lie there before, are added.
What a library allocates past torch (the scratch memory of a convolution) is not in it. Nothing here
is timed, so other programs on the machine do not matter.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
from record import Record
from workloads import LOSS, Workload, chosen

import fxperex
from fxperex.planner.memory import plan_peak
from fxperex.rewrite.frame import trace_frame

NEAR = 0.1  # relative error that counts as near


def measured_peak(private: fxperex.PerExampleModule, batch: tuple[torch.Tensor,
                                                                  ...]) -> tuple[float, float]:
    """Returns (peak bytes of one eager step beside its inputs, bytes of the inputs: parameters,
    buffers, batch).
    """
    inputs = private.step_inputs(batch)
    private.compiled(*inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as record:
        private.compiled(*inputs)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in inputs}
    return float(max(itertools.accumulate(e.nbytes() for e in events))), float(sum(held.values()))


def bench(work: Workload, rows: int, strategy: str) -> dict[str, Any]:
    """Returns one row of the record, in bytes."""
    torch.manual_seed(0)
    model, batch = work.make(), work.batch(rows)
    private = fxperex.transform(model, batch, LOSS, strategy=strategy, backend="eager")
    plan = private.plan
    found = plan_peak(trace_frame(private.captured, private.analysis, plan.frame_rows),
                      plan.choices)
    made, inputs = measured_peak(private, tuple(x[:plan.frame_rows] for x in batch))
    return {
        "predicted": found.bytes, "measured": made + inputs, "inputs": inputs,
        "step_graph": private.peak, "at": found.instruction, "ratio": found.bytes / (made + inputs),
        "ratio_without_inputs": (found.bytes - inputs) / made
    }


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the line that counts models, not rows: a model is near if it is so at every batch
    size and strategy.
    """
    models: dict[str, list[float]] = {}
    for key, row in rows.items():
        models.setdefault(key.partition(" B=")[0], []).append(row["ratio"])
    near = [name for name, found in models.items() if all(abs(r - 1) <= NEAR for r in found)]
    worst = max(rows, key=lambda k: abs(rows[k]["ratio"] - 1))
    return (f"within {NEAR:.0%}: {len(near)} of {len(models)} models; furthest {worst}: "
            f"{rows[worst]['ratio']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no new row "
                                                                    "begins; run again to go on")
    parser.add_argument("--quick", action="store_true", help="the smaller batch size of each "
                                                             "workload alone")
    parser.add_argument("--workloads", nargs="+", help="names of workloads, default all")
    parser.add_argument("--strategies", nargs="+", default=["auto"])
    parser.add_argument("--toy-size", type=int, default=32, help="pixels a side of the toy CNNs' "
                                                                 "images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path,
                        default=Path(__file__).parent / "results" / "cpu" / "memory.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {
        f"{w.name} B={rows} {strategy}": (w, rows, strategy)
        for w, rows in chosen(args.toy_size, args.workloads, args.quick)
        for strategy in args.strategies
    }
    record = Record(args.output, 60 * args.minutes, {"toy_size": args.toy_size})
    for key in record.missing(list(found)):
        row = bench(*found[key])
        record.add(key, row)
        print(f"{key:32} predicted {row['predicted'] / 2**20:8.1f} MiB  measured "
              f"{row['measured'] / 2**20:8.1f} MiB  ratio {row['ratio']:.3f}, without inputs "
              f"{row['ratio_without_inputs']:.3f}  at {row['at']}", flush=True)
    if record.rows:
        print(summary(record.rows))


if __name__ == "__main__":
    main()
