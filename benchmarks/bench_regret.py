"""How good the plans are: auto's step over the best plan's, found by measuring every legal strategy at every site.

    python benchmarks/bench_regret.py [--limit 3600] [--only resnet18 decoder] [--output FILE]

Per workload and batch size: regret of the whole step (eager, interleaved rounds, medians), share of sites whose chosen
strategy is within 5 % of the best or within the noise, Kendall's tau of predicted against measured times of a site's
strategies, predicted against measured peak memory. A strategy predicted to be over `--hopeless` times slower than the
fastest one measured at its site is not run; how many is in the row.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import Record
from workloads import LOSS, Workload, workloads

import fxperex
from fxperex.frame import trace_frame
from fxperex.planner.memory import plan_peak
from fxperex.planner.plan import Choice
from fxperex.trial import Trial

Times = dict[str, float]


def measure_sites(private: fxperex.PerExampleModule, trial: Trial, hopeless: float) -> tuple[dict[str, Times], int]:
    """Returns {site: {strategy: seconds}}, equal shapes timed once, and how many hopeless ones were not run."""
    known: dict[str, Times] = {}
    found: dict[str, Times] = {}
    left = 0
    for c in private.plan.choices:
        key = trial.key(c.site, "")
        if key not in known:
            known[key], skipped = _site(c, trial, hopeless)
            left += skipped
        found[c.site.name] = known[key]
    return found, left


def _site(choice: Choice, trial: Trial, hopeless: float) -> tuple[Times, int]:
    times: Times = {}
    for name in sorted(choice.times, key=choice.times.__getitem__):
        if not times or choice.times[name] < hopeless * min(times.values()):
            times[name] = trial.measure(choice.site, name)
    return times, len(choice.times) - len(times)


def kendall(one: list[float], two: list[float]) -> float | None:
    """Returns Kendall's tau of two rankings without ties, None for fewer than two items."""
    pairs = [(a, b) for a, b in itertools.combinations(zip(one, two, strict=True), 2)]
    if not pairs:
        return None
    agree = sum((a[0] < b[0]) == (a[1] < b[1]) for a, b in pairs)
    return 2 * agree / len(pairs) - 1


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns {name: seconds of each round}; every round runs every candidate once."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for call in runs.values():
        call()
    for _ in range(rounds):
        for name, call in runs.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def close(choice: Choice, times: Times, trial: Trial, rounds: int) -> bool:
    """True where the chosen strategy is within 5 % of the best, or nearer to it than the noise of both."""
    best = min(times, key=times.__getitem__)
    if times[choice.strategy] <= 1.05 * times[best]:
        return True
    again = interleaved({k: trial.prepare(choice.site, k) for k in (choice.strategy, best)}, rounds)
    mine, theirs = again[choice.strategy], again[best]
    if statistics.median(mine) <= 1.05 * statistics.median(theirs):
        return True
    return statistics.quantiles(mine, n=4)[0] < statistics.quantiles(theirs, n=4)[2]


def measured_peak(private: fxperex.PerExampleModule, batch: tuple[torch.Tensor, ...]) -> float:
    """Returns the peak bytes that torch allocates in one eager step, inputs and parameters added."""
    inputs = [*private._inputs(batch), torch.ones(private._rows, dtype=torch.bool)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        private._step(*inputs)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in inputs}
    return max(itertools.accumulate(e.nbytes() for e in events)) + sum(held.values())


def bench(work: Workload, rows: int, rounds: int, hopeless: float) -> dict[str, Any]:
    """Returns one row of the record."""
    torch.manual_seed(0)
    model, batch = work.make(), work.batch(rows)
    auto = fxperex.transform(model, batch, LOSS, backend="eager")
    trial = Trial(auto._capture, auto._analysis, torch.device("cpu"), remember=False)
    times, left = measure_sites(auto, trial, hopeless)
    wanted = {c.site.name: min(times[c.site.name], key=times[c.site.name].__getitem__) for c in auto.plan.choices}
    # A ready-made plan is a decision per site, tied parameters included.
    best = fxperex.transform(model, batch, LOSS, strategy=_decided(auto, wanted), backend="eager")
    ran = interleaved({"auto": lambda: auto.step(*batch), "best": lambda: best.step(*batch)}, rounds)
    good = [close(c, times[c.site.name], trial, rounds) for c in _distinct(auto, trial)]
    taus = [kendall([c.times[k] for k in times[c.site.name]], list(times[c.site.name].values())) for c in _distinct(auto, trial)]
    predicted = plan_peak(trace_frame(auto._capture, auto._analysis, rows), auto.plan.choices).bytes
    real = measured_peak(auto, batch)
    return {"regret": statistics.median(ran["auto"]) / min(statistics.median(ran["auto"]), statistics.median(ran["best"])),
            "auto_over_best": statistics.median(a / b for a, b in zip(ran["auto"], ran["best"], strict=True)),
            "sites": len(good), "sites_good": sum(good), "hopeless_not_run": left,
            "tau": [t for t in taus if t is not None], "peak_predicted": predicted, "peak_measured": real,
            "times": {c.site.name: {"chosen": c.strategy, "measured": times[c.site.name],
                                    "predicted": {k: c.times[k] for k in times[c.site.name]}} for c in _distinct(auto, trial)}}


def _decided(private: fxperex.PerExampleModule, wanted: dict[str, str]) -> Any:
    from dataclasses import replace

    return replace(private.plan, choices=tuple(c.using(wanted[c.site.name]) for c in private.plan.choices))


def _distinct(private: fxperex.PerExampleModule, trial: Trial) -> list[Choice]:
    """One choice per distinct site shape, where there is a choice."""
    seen = {trial.key(c.site, ""): c for c in reversed(private.plan.choices)}
    return [c for c in seen.values() if len(c.times) > 1]


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the lines that the issue asks for."""
    regrets = sorted(r["regret"] for r in rows.values())
    taus = [t for r in rows.values() for t in r["tau"]]
    sites, good = sum(r["sites"] for r in rows.values()), sum(r["sites_good"] for r in rows.values())
    near = sum(abs(r["peak_predicted"] / r["peak_measured"] - 1) <= 0.1 for r in rows.values())
    return "\n".join([
        f"{len(rows)} workloads and batch sizes", f"regret: median {statistics.median(regrets):.3f}, worst {regrets[-1]:.3f}",
        f"sites within 5 % of the best or within noise: {good} of {sites}",
        f"Kendall's tau of a site's strategies: median {statistics.median(taus):.3f} over {len(taus)} sites",
        f"peak memory within 10 %: {near} of {len(rows)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which no new row begins")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--hopeless", type=float, default=20.0)
    parser.add_argument("--toy-size", type=int, default=32)
    parser.add_argument("--only", nargs="+", help="names of workloads")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu" / "regret.json")
    args = parser.parse_args()
    torch.set_num_threads(2)
    found = {f"{w.name} B={rows}": (w, rows) for w in workloads(args.toy_size) for rows in w.rows
             if args.only is None or w.name in args.only}
    record = Record(args.output, args.limit, {"rounds": args.rounds, "hopeless": args.hopeless, "toy_size": args.toy_size})
    for key in record.missing(list(found)):
        row = bench(*found[key], args.rounds, args.hopeless)
        record.add(key, row)
        print(f"{key:24} regret {row['regret']:.3f}  sites {row['sites_good']}/{row['sites']}  tau "
              f"{statistics.median(row['tau'] or [1]):.2f}  peak {row['peak_predicted'] / row['peak_measured']:.3f}", flush=True)
    if record.rows:
        print(summary(record.rows))


if __name__ == "__main__":
    main()
