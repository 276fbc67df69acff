"""Held-out accuracy on the digits: mean of five seeds at epsilon 1, 3 and 8, into
results/cpu/digits.json.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fxperex.demo.train import Job, Outcome, run

EPSILONS = (1.0, 3.0, 8.0)
SEEDS = range(5)
RESULTS = Path(__file__).parent / "results" / "cpu" / "digits.json"


def measure(epsilon: float) -> dict[str, Any]:
    """Returns mean, std and per-seed accuracies in percent at `epsilon`."""
    outcomes: list[Outcome] = []
    for seed in SEEDS:
        noise = outcomes[0].noise_multiplier if outcomes else None
        outcomes.append(
            run(Job(epsilon=epsilon, seed=seed, noise_multiplier=noise),
                plain=epsilon == EPSILONS[0]))
    row = {"epsilon": epsilon, "spent": outcomes[0].epsilon, "delta": outcomes[0].delta,
           "noise_multiplier": outcomes[0].noise_multiplier, "steps": outcomes[0].steps,
           **_summary([o.accuracy for o in outcomes])}
    plain = [o.plain for o in outcomes if o.plain is not None]
    return row | ({"without_privacy": _summary(plain)} if plain else {})


def _summary(shares: list[float]) -> dict[str, Any]:
    percent = [100 * s for s in shares]
    return {"mean": statistics.mean(percent), "std": statistics.stdev(percent), "seeds": percent}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    print("epsilon  mean %   std  per seed")
    for epsilon in EPSILONS:
        row = measure(epsilon)
        rows.append(row)
        print(f"{epsilon:7g}  {row['mean']:6.2f}  {row['std']:4.2f}  "
              f"{' '.join(f'{s:.2f}' for s in row['seeds'])}",
              flush=True)
    versions = {name: version(name) for name in ("torch", "dp-accounting", "scikit-learn", "numpy")}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "python": platform.
                python_version(), "versions": versions, "job": asdict(replace(Job(), epsilon=0.0))
                | {"epsilon": list(EPSILONS)}, "results": rows
            }, indent=1) + "\n")


if __name__ == "__main__":
    main()
