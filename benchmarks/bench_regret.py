"""How good the plans are: auto's step over the best plan's, found by measuring every legal strategy
at every site.

    python benchmarks/bench_regret.py [--minutes 25] [--workloads resnet18 decoder] [--quick]
    [--output FILE]

Per workload and batch size: regret of the whole step (eager, interleaved rounds, medians), share of
distinct sites whose chosen strategy is within 5 % of the best or within the noise (sites of one
node that share work, as scale and shift of a normalisation do, are measured together), Kendall's
tau of predicted against measured times of a site's
strategies: over all pairs, and over those whose measured times are told apart by the same 5 % and
noise. The clipped sums of both plans are held to the float64 loop before anything is timed. A
strategy that would hold more than `--most` bytes at a site is not run; the row names it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import Times, gradient_error, interleaved, medians, race, truth, within
from record import Record
from workloads import LOSS, Workload, chosen

import fxperex
from fxperex.plan.choice import Choice
from fxperex.planner import parse_memory
from fxperex.planner.trial import Trial
from fxperex.rewrite.rewriter import rewrite
from fxperex.runtime.compiled import compile_checked

SECONDS = 1.0  # of rounds of the whole step, at least
Site = dict[str, Any]  # of one distinct site: chosen, measured, predicted, good, tau, tau_apart


class Judge:
    """Measures the strategies of sites; equal work, in whatever model, is measured once."""

    def __init__(self, spend: float, rounds: int, most: int) -> None:
        self.spend, self.rounds, self.most = spend, rounds, most
        self.known: dict[str, Site] = {}

    def site(self, choice: Choice, trial: Trial) -> Site:
        """Returns what was measured at the choice's site."""
        key = trial.key(choice.site, choice.strategy)
        if key not in self.known:
            self.known[key] = self._measure(choice, trial)
        return self.known[key]

    def _measure(self, choice: Choice, trial: Trial) -> Site:
        left_out = [
            k for k, c in choice.costs.items()
            if c.held + c.transient > self.most and k != choice.strategy
        ]
        runs = {k: trial.prepare(choice.site, k) for k in choice.costs if k not in left_out}
        times = race(runs, self.spend)
        took = medians(times)
        best = min(took, key=took.__getitem__)
        good = took[choice.strategy] <= 1.05 * took[best]
        if not good:  # the least of several noisy times is too low: both once more, side by side
            again = interleaved({k: runs[k] for k in (choice.strategy, best)}, self.rounds)
            good = within(again[choice.strategy], again[best])
        predicted = {k: choice.times[k] for k in took}
        return {
            "name": choice.site.name, "kind": choice.site.kind, "chosen": choice.strategy,
            "best": best, "good": good, "tau": tau(predicted,
                                                   took), "tau_apart": tau_apart(predicted, times),
            "measured": took, "predicted": predicted, "left_out": left_out
        }


def tau(predicted: dict[str, float], measured: dict[str, float]) -> float | None:
    """Returns Kendall's tau of the two, None for fewer than two strategies."""
    from scipy.stats import kendalltau

    if len(predicted) < 2:
        return None
    return float(kendalltau(list(predicted.values()), [measured[k] for k in predicted]).statistic)


def tau_apart(predicted: dict[str, float], times: Times) -> float | None:
    """Returns Kendall's tau over the pairs that `times` tell apart, None where they tell none
    apart.
    """
    took, right = medians(times), []
    for one, two in itertools.combinations(predicted, 2):
        fast, slow = sorted((one, two), key=took.__getitem__)
        if len(times[fast]) != len(
                times[slow]) or not within(times[slow], times[fast]):  # one of them was hopeless
            right.append(1 if predicted[fast] < predicted[slow] else -1)
    return sum(right) / len(right) if right else None


def bench(work: Workload, rows: int, judge: Judge) -> dict[str, Any]:
    """Returns one row of the record."""
    torch.manual_seed(0)
    model = work.make()
    batch, total = truth(model, work.batch(rows), LOSS)
    auto = fxperex.transform(model, batch, LOSS, backend="eager")
    trial = Trial(auto.captured, auto.analysis, torch.device("cpu"), remember=False)
    measured = {c.site.name: judge.site(c, trial) for c in auto.plan.choices}
    best = _by(auto, model, batch, {name: site["best"] for name, site in measured.items()})
    errors = {
        name: gradient_error(model, step, batch, total)
        for name, step in (("auto", auto), ("best", best))
    }
    ran = interleaved({"auto": lambda: auto.step(*batch), "best": lambda: best.step(*batch)},
                      judge.rounds, SECONDS)
    took = medians(ran)
    distinct = list({id(site): site
                     for site in measured.values()
                     if len(site["measured"]) > 1}.values())
    return {
        "input": list(batch[0].shape), "parameters": sum(p.numel() for p in model.parameters()),
        "errors": errors, "seconds": took, "rounds": ran,
        "regret": took["auto"] / min(took.values()), "sites": len(distinct),
        "sites_good": sum(site["good"] for site in distinct), "each": distinct
    }


def _by(auto: fxperex.PerExampleModule, model: torch.nn.Module, batch: tuple[torch.Tensor, ...],
        wanted: dict[str, str]) -> fxperex.PerExampleModule:
    """The step with another strategy at some sites, of the same capture."""
    plan = replace(auto.plan,
                   choices=tuple(c.using(wanted[c.site.name]) for c in auto.plan.choices))
    graph = rewrite(auto.captured, auto.analysis, plan, auto.clip)
    compiled = compile_checked(graph, auto.signature, model, batch, plan, "eager")
    return fxperex.PerExampleModule(model, batch, auto.captured, auto.analysis, plan, graph,
                                    compiled)


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the figures over all rows."""
    regrets = {k: r["regret"] for k, r in rows.items()}
    worst = max(regrets, key=regrets.__getitem__)
    sites, good = sum(r["sites"] for r in rows.values()), sum(
        r["sites_good"] for r in rows.values())
    each = [site for row in rows.values() for site in row["each"]]
    taus, apart = ([s[key] for s in each if s[key] is not None] for key in ("tau", "tau_apart"))
    return "\n".join([
        f"{len(rows)} workloads and batch sizes",
        f"regret: median {statistics.median(regrets.values()):.3f}, worst {regrets[worst]:.3f} "
        f"({worst})",
        f"sites within 5 % of the best or within the noise: {good} of {sites} "
        f"({good / max(sites, 1):.1%})",
        f"Kendall's tau of a site's strategies: median {statistics.median(taus):.3f} over "
        f"{len(taus)} sites; of pairs that measuring tells apart {statistics.median(apart):.3f} "
        f"over {len(apart)}"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no new row "
                                                                    "begins; run again to go on")
    parser.add_argument("--workloads", nargs="+", help="their names, default all")
    parser.add_argument("--quick", action="store_true", help="the smaller batch alone, few "
                                                             "rounds; for a look, not for figures")
    parser.add_argument("--rounds", type=int, default=11, help="of the whole step")
    parser.add_argument("--spend", type=float, default=0.3, help="seconds for the strategies of "
                                                                 "one site")
    parser.add_argument("--most", default="3GiB", help="a strategy that holds more at a site is "
                                                       "not run")
    parser.add_argument("--toy-size", type=int, default=32, help="pixels a side of the toy CNNs' "
                                                                 "images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path,
                        default=Path(__file__).parent / "results" / "cpu" / "regret.json")
    return parser.parse_args()


def main() -> None:
    args = _options()
    if args.quick:
        args.rounds, args.spend = 3, 0.02
    torch.set_num_threads(args.threads)
    found = {
        f"{w.name} B={rows}": (w, rows)
        for w, rows in chosen(args.toy_size, args.workloads, args.quick)
    }
    record = Record(
        args.output, 60 * args.minutes, {
            "rounds": args.rounds, "spend": args.spend, "most": args.most,
            "toy_size": args.toy_size, "backend": "eager"
        })
    judge = Judge(args.spend, args.rounds, parse_memory(args.most) or 0)
    for key in record.missing(list(found)):
        row = bench(*found[key], judge)
        record.add(key, row)
        middle = statistics.median([s["tau"] for s in row["each"]] or [1])
        print(f"{key:24} regret {row['regret']:.3f}  sites {row['sites_good']}/{row['sites']}  "
              f"tau {middle:.2f}  error {max(row['errors'].values()):.0e}", flush=True)
    if record.rows:
        print(summary(record.rows))


if __name__ == "__main__":
    main()
