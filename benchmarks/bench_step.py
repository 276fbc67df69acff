"""The private step against the ordinary step and against other libraries: one run, interleaved
rounds, medians, ratios.

    python benchmarks/bench_step.py [--device cpu|cuda] [--dtype float32|tf32|bfloat16] [--workloads
                                    mlp ...] [--candidates auto eager crb peers ...] [--rounds 21]
                                    [--largest] [--keep-pages]

A candidate is `auto`, a backend (`eager`, `inductor`: the auto plan on it), a strategy's name (on
the CPU run eagerly: to be read beside `eager`), a peer's name, `strategies` (all of them), `peers`
(all of them) or `compiled` (the ordinary step through Inductor). The ordinary step is eager:
forward and backward, no privacy. A row's clipped sum is held to the float64 loop before it is timed
(other libraries' more loosely); what cannot run says why; what is more than ten times as slow has
three rounds. On the CPU the threads wait passively, so that CPU seconds count work alone. Rows are
written as they are done; run again to go on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch loads its threads

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import step_workloads
import torch
from measure import CHECKED, WARM, left_error, truth
from peers import PEERS, peer
from record import Record
from torch import Tensor, nn

import fxperex
from fxperex.devices import keep_pages

LOSS = nn.CrossEntropyLoss()
STRATEGIES = ("naive", "multi", "crb", "unfold", "ghost", "vmap", "fused")
# turns, those before timing among them, of a candidate more than SLOW times the ordinary step
FEW = WARM + 3
SLOW = 10.0
TOLERANCE = {"float32": 1e-5, "tf32": 2e-2, "bfloat16": 1e-1}
# Other libraries' norms are float32's own, low by up to 1e-3 for long gradients: timed all the
# same, the error beside the time.
OTHERS = 1e-2
Call = Callable[[], None]
Turn = tuple[float, float, int]  # wall seconds, CPU seconds, page faults


class Setting:
    """One workload on a device, and the truth about its first rows."""

    def __init__(self, step: step_workloads.Step, device: str, dtype: str,
                 rows: int | None = None) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = torch.device(device), dtype
        self.model = step.make().to(device)
        self.x, self.y = (t.to(device) for t in step.batch(rows or step.rows))
        self.autocast = torch.bfloat16 if dtype == "bfloat16" else None

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type,
                              self.autocast) if self.autocast else contextlib.nullcontext()

    def truth(self) -> Mapping[str, Tensor]:
        """Returns the clipped sum over the first rows, in float64; turns the batch away from
        kinks.
        """
        (self.x, self.y), exact = truth(self.model, (self.x, self.y), LOSS)
        return exact

    def ordinary(self, *, compiled: bool = False) -> tuple[nn.Module, Call]:
        forward = torch.compile(self.model) if compiled else self.model

        def run() -> None:
            self.model.zero_grad(set_to_none=True)
            with self.context():
                loss = LOSS(forward(self.x), self.y)
            loss.backward()

        return self.model, run

    def private(self, **options: Any) -> tuple[fxperex.PerExampleModule, Call]:
        private = fxperex.transform(self.model, (self.x, self.y), LOSS, autocast=self.autocast,
                                    **options)

        def run() -> None:
            self.model.zero_grad(set_to_none=True)
            private.step(self.x, self.y)

        return private, run

    def single(self, strategy: str) -> dict[str, Any]:
        """Options for one strategy everywhere. Seven more compiled steps a workload would take a
        CPU minutes each.
        """
        return {"strategy": strategy, "backend": "eager" if self.device.type == "cpu" else "auto"}

    def peer(self, name: str, rows: int) -> tuple[nn.Module, Call]:
        own, call = peer(name, self.model, self.x[:rows], self.y[:rows], 1.0)

        def run() -> None:
            with self.context():
                call()

        return own, run


def make(setting: Setting, name: str, truth: Mapping[str, Tensor]) -> tuple[Call, dict[str, Any]]:
    """Returns (what one round calls, what is known of it); raises if its gradient is wrong."""
    start = time.perf_counter()
    if name == "compiled":
        _, call = setting.ordinary(compiled=True)
        call()
        return call, {"seconds_to_first_step": time.perf_counter() - start}
    facts: dict[str, Any]
    if name in PEERS:
        own, call = setting.peer(name, CHECKED)
        call()
        facts = {"error": left_error(own, truth)}
        start = time.perf_counter()
        _, call = setting.peer(name, len(setting.x))
    else:
        options = {"auto": {}, "eager": {"backend": "eager"},
                   "inductor": {"backend": "inductor"}}.get(name, setting.single(name))
        private, call = setting.private(**options)
        private.compile()
        setting.model.zero_grad(set_to_none=True)
        private.step(setting.x[:CHECKED], setting.y[:CHECKED])
        facts = {"error": left_error(setting.model, truth), "ran_on": private.backend,
                 "strategies": {c.site.name: c.strategy for c in private.plan.choices}}
    if not facts["error"] <= (max(OTHERS, TOLERANCE[setting.dtype])
                              if name in PEERS else TOLERANCE[setting.dtype]):
        raise ArithmeticError(f"wrong gradient: relative error {facts['error']:.1e}")
    call()
    return call, facts | {"seconds_to_first_step": time.perf_counter() - start}


def timed(call: Call, device: torch.device) -> Turn:
    """Returns (wall seconds, CPU seconds, page faults) of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, work, faults = time.perf_counter(), time.process_time(), getrusage(RUSAGE_SELF).ru_minflt
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - work, getrusage(
        RUSAGE_SELF).ru_minflt - faults


def turns(calls: Mapping[str, Call], device: torch.device, rounds: int) -> dict[str, list[Turn]]:
    """Returns {candidate: its rounds}, interleaved; hopelessly slow ones leave after a few."""
    times: dict[str, list[Turn]] = {c: [] for c in calls}
    for i in range(rounds + WARM):
        for candidate, call in calls.items():
            if i >= FEW and min(times[candidate])[0] > SLOW * min(times["ordinary"])[0]:
                continue
            taken = timed(call, device)
            if i >= WARM:
                times[candidate].append(taken)
    return times


def peak(call: Call, device: torch.device) -> int | None:
    """Returns the peak bytes of one call on a GPU; None elsewhere (the CPU's:
    `bench_memory.py`).
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def largest(step: step_workloads.Step, device: str, dtype: str, name: str) -> int:
    """Returns the largest power of two times the workload's rows at which a step fits into the
    GPU's memory.
    """
    rows = step.rows
    while True:
        try:
            setting = Setting(step, device, dtype, rows)
            call = setting.ordinary()[1] if name == "ordinary" else (
                setting.peer(name, rows)[1] if name in PEERS else setting.private(
                    backend="eager")[1])
            call()
        except (torch.OutOfMemoryError, fxperex.FxperexError):
            return rows // 2
        finally:
            torch.cuda.empty_cache()
        rows *= 2


def summary(times: list[Turn], base: list[Turn]) -> dict[str, Any]:
    """Ratios to the ordinary step, wall and CPU, over the rounds that both ran: medians, and
    quartiles of the rounds' own.

    `page_faults`: the median of a round; memory that the C library handed back is touched anew at a
    tenth of its speed.
    """
    facts: dict[str, Any] = {"rounds": len(times)}
    for i, clock in enumerate(("", "cpu_")):
        rounds = [a[i] / b[i] for a, b in zip(times, base, strict=False)]
        quarters = statistics.quantiles(rounds, n=4)
        medians = [statistics.median(t[i] for t in side) for side in (times, base[:len(times)])]
        facts |= {
            f"{clock}ratio": medians[0] / medians[1],
            f"{clock}ratio_quartiles": [quarters[0], quarters[2]]
        }
    return facts | {
        "seconds": statistics.median(t[0] for t in times), "page_faults": statistics.median(
            t[2] for t in times)
    }


def bench(name: str, step: step_workloads.Step, candidates: list[str],
          args: argparse.Namespace) -> dict[str, Any]:
    setting = Setting(step, args.device, args.dtype)
    truth = setting.truth()
    row: dict[str, Any] = {
        "rows": step.rows, "parameters": sum(p.numel() for p in setting.model.parameters()),
        "aim": step.aim, "best_peer_elsewhere": step.peer, "candidates": {}
    }
    calls: dict[str, Call] = {"ordinary": setting.ordinary()[1]}
    for candidate in candidates:
        try:
            calls[candidate], row["candidates"][candidate] = make(setting, candidate, truth)
        # another library's reason is its own business: it is written down
        except Exception as problem:
            row["candidates"][candidate] = {
                "did_not_run": f"{type(problem).__name__}: "
                f"{str(problem).strip().splitlines()[:1]}"
            }
    times = turns(calls, setting.device, args.rounds)
    for candidate in calls:
        facts = row["candidates"].setdefault(candidate, {})
        facts |= summary(times[candidate], times["ordinary"]) | {
            "peak_bytes": peak(calls[candidate], setting.device)
        }
        if args.largest and args.device == "cuda" and candidate in ("ordinary", "auto", *PEERS):
            facts["largest_batch"] = largest(step, args.device, args.dtype, candidate)
    report(name, row)
    return row


def report(name: str, row: dict[str, Any]) -> None:
    for candidate, facts in row["candidates"].items():
        if "did_not_run" in facts:
            print(f"{name:22} {candidate:16} {facts['did_not_run'][:90]}", flush=True)
        else:
            low, high = facts["cpu_ratio_quartiles"]
            print(f"{name:22} {candidate:16} wall {facts['ratio']:6.2f}  cpu "
                  f"{facts['cpu_ratio']:6.2f} [{low:.2f}, {high:.2f}]  aim {row['aim']}  "
                  f"{facts.get('ran_on', '')}", flush=True)


def named(candidates: list[str]) -> list[str]:
    groups = {"strategies": list(STRATEGIES), "peers": list(PEERS)}
    return [c for given in candidates for c in groups.get(given, [given])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--workloads", nargs="+")
    parser.add_argument("--candidates", nargs="+", default=["auto"])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--largest", action="store_true", help="on a GPU: find the largest batch "
                                                               "that fits")
    parser.add_argument("--keep-pages", action="store_true", help="on the CPU: freed memory stays "
                                                                  "with the process")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.keep_pages and not keep_pages():
        raise SystemExit("--keep-pages needs glibc")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.dtype == "tf32"
    known = step_workloads.cuda() if args.device == "cuda" else step_workloads.cpu()
    where = torch.cuda.get_device_name().replace(" ", "-") if args.device == "cuda" else "cpu"
    kept = "_kept_pages" if args.keep_pages else ""
    output = args.output or Path(
        __file__).parent / "results" / where / f"step_{args.dtype}{kept}.json"
    candidates = named(args.candidates)
    record = Record(
        output, args.minutes * 60, {
            "rounds": args.rounds, "dtype": args.dtype, "candidates": candidates,
            "keep_pages": args.keep_pages
        })
    for name in record.missing(args.workloads or list(known)):
        record.add(name, bench(name, known[name], candidates, args))


if __name__ == "__main__":
    main()
