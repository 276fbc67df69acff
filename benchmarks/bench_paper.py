"""The question of arXiv 1912.06015, asked again: naive, multi, crb and `auto` beside the ordinary
step.

    python benchmarks/bench_paper.py [--minutes 25] [--parts toy batch table] [--quick] [--output
    FILE]

Its 30 toy CNNs (batch 8), its sweep of batch sizes (3 layers, 256 channels, kernel 5) and its
AlexNet and VGG16 (batch 16 and 8), on smaller images where a CPU needs them: the sizes are in the
JSON. Every strategy's clipped sum is held to the float64 loop before it is timed; rounds are
interleaved. Writes FILE.json as rows are done, then the tables and pictures beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import gradient_error, interleaved, medians, truth
from paper_report import write
from record import Record
from torch import nn
from workloads import GRID, LOSS, Workload, images, toy

import fxperex

STRATEGIES = ("naive", "multi", "crb", "auto")
SWEEP = (3, 5, 7, 9, 12, 15)


def toys(size: int) -> dict[str, Workload]:
    return {
        f"toy,{layers},{rate:g},{kernel}": Workload(
            "toy",
            lambda a=layers, b=rate, c=kernel: toy(a, b, c, size),  # type: ignore[misc]
            images(size),
            (8, 8))
        for kernel in (3, 5)
        for layers, rates in GRID.items()
        for rate in rates
    }


def sweep(size: int) -> dict[str, Workload]:
    return {
        f"batch,{rows}": Workload("sweep", lambda: toy(3, 1.0, 5, size, first=256), images(size),
                                  (rows, rows))
        for rows in SWEEP
    }


def table(size: int) -> dict[str, Workload]:
    """torchvision's own networks, 1000 classes; dropout off, so that gradients can be checked."""
    from torchvision import models

    made: dict[str, tuple[Callable[..., nn.Module],
                          int]] = {"alexnet": (models.alexnet, 16), "vgg16": (models.vgg16, 8)}
    return {
        f"table,{name}": Workload(name, lambda f=make: f(dropout=0.0), images(size, 1000),
                                  (rows, rows))  # type: ignore[misc]
        for name, (make, rows) in made.items()
    }


def bench(work: Workload, rounds: int, backend: str) -> dict[str, Any]:
    """Returns one row of the record: medians and rounds, in seconds of one step, of every strategy
    and of no privacy.
    """
    torch.manual_seed(0)
    model = work.make()
    batch, total = truth(model, work.batch(work.rows[0]), LOSS)

    def ordinary() -> None:
        model.zero_grad()
        LOSS(model(*batch[:-1]), batch[-1]).backward()

    runs: dict[str, Callable[[], object]] = {"no_dp": ordinary}
    errors, chosen = {}, {}
    for name in STRATEGIES:
        private = fxperex.transform(model, batch, LOSS, strategy=name,
                                    backend=backend if name == "auto" else "eager")
        private.compile()
        errors[name] = gradient_error(model, private, batch, total)
        chosen[name] = {c.site.name: c.strategy for c in private.plan.choices}
        runs[name] = _step(model, private, batch)
    times = interleaved(runs, rounds)
    return {
        "input": list(batch[0].shape), "parameters": sum(p.numel() for p in model.parameters()),
        "errors": errors, "auto": chosen["auto"], "seconds": medians(times), "rounds": times
    }


def _step(model: nn.Module, private: fxperex.PerExampleModule,
          batch: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad()
        private.step(*batch)

    return step


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no new row "
                                                                    "begins; run again to go on")
    parser.add_argument("--parts", nargs="+", choices=["toy", "batch", "table"],
                        default=["table", "batch", "toy"])
    parser.add_argument("--quick", action="store_true", help="few rounds, tiny images; for a "
                                                             "look, not for figures")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--backend", default="eager", help="of auto; the paper's own strategies "
                                                           "run eagerly")
    parser.add_argument("--toy-size", type=int, default=32, help="pixels a side; the paper: 256")
    parser.add_argument("--batch-size", type=int, default=16, help="pixels a side in the sweep of "
                                                                   "batches; the paper: 256")
    parser.add_argument("--table-size", type=int, default=64, help="pixels a side of AlexNet and "
                                                                   "VGG16; the paper: 256")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report-only", action="store_true", help="write tables and pictures of "
                                                                   "what is in the file")
    parser.add_argument("--output", type=Path,
                        default=Path(__file__).parent / "results" / "cpu" / "paper.json")
    return parser.parse_args()


def main() -> None:
    args = _options()
    if args.quick:
        args.rounds, args.toy_size, args.batch_size = 2, 12, 8
    torch.set_num_threads(args.threads)
    parts = {
        "toy": toys(args.toy_size), "batch": sweep(args.batch_size), "table": table(args.table_size)
    }
    found = {key: work for part in args.parts for key, work in parts[part].items()}
    record = Record(
        args.output, 60 * args.minutes, {
            "rounds": args.rounds, "backend": args.backend, "toy_size": args.toy_size,
            "batch_size": args.batch_size, "table_size": args.table_size
        })
    for key in record.missing([] if args.report_only else list(found)):
        row = bench(found[key], args.rounds, args.backend)
        record.add(key, row)
        base = row["seconds"]["no_dp"]
        print(
            f"{key:16} no-DP {1e3 * base:8.1f} ms; times that: " +
            ", ".join(f"{name} {row['seconds'][name] / base:.2f}" for name in STRATEGIES),
            flush=True)
    for path in write(args.output):
        print(path)


if __name__ == "__main__":
    main()
