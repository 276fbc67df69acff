"""Held-out accuracy on the digits at (epsilon 3, delta 1e-4), ours and Opacus', into
results/cpu/digits_opacus.json.

Same network, initial weights, sampling rate, noise, clip, learning rate and steps; rows and noise
are each library's own. Opacus is put together from its parts, because its `make_private` rounds the
sampling rate to 1 / ceil(n / batch). Needs `pip install opacus==1.6.0`. Run again, it goes on with
the seeds that are missing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import warnings
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from record import Record, Row
from torch import nn

from fxperex.demo.data import load, standardise
from fxperex.demo.train import Job, accuracy, network, run
from fxperex.privacy import PoissonSampler, noise_multiplier_for

RESULTS = Path(__file__).parent / "results" / "cpu" / "digits_opacus.json"
SIZE = 1437  # training digits


def opacus(job: Job) -> float:
    """Returns the held-out accuracy of `job` trained by Opacus."""
    from opacus import GradSampleModule
    from opacus.data_loader import DPDataLoader
    from opacus.optimizers import DPOptimizer

    data = load(job.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = GradSampleModule(network(data.shape, data.classes))
        dataset = torch.utils.data.TensorDataset(standardise(data.train[0]), data.train[1])
        draws, noise = torch.Generator().manual_seed(
            job.seed), torch.Generator().manual_seed(job.seed + 10**6)
        loader = DPDataLoader(dataset, sample_rate=job.batch / SIZE, generator=draws)
        optimizer = DPOptimizer(torch.optim.Adam(model.parameters(), lr=job.lr),
                                noise_multiplier=job.noise_multiplier, max_grad_norm=job.clip,
                                expected_batch_size=job.batch, generator=noise)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for x, y in itertools.islice(batches, steps(job)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return accuracy(model, data.test)


def steps(job: Job) -> int:
    return math.ceil(job.epochs * SIZE / job.batch)


def summary(rows: dict[str, Row], seeds: int) -> Row:
    """Returns mean and spread of both, in percent, and their difference in its standard errors."""
    shares = {
        who: [rows[f"{who} {seed}"]["accuracy"]
              for seed in range(seeds)]
        for who in ("fxperex", "opacus")
    }
    told: dict[str, Any] = {
        who: {"mean": statistics.mean(s), "std": statistics.stdev(s)}
        for who, s in shares.items()
    }
    error = math.sqrt(sum(t["std"] ** 2 / seeds for t in told.values()))
    difference = told["fxperex"]["mean"] - told["opacus"]["mean"]
    return told | {"difference": difference, "standard error": error, "difference in standard "
                                                                      "errors": difference / error}


def main() -> None:
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--minutes", type=float, default=30)
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    job = Job()
    sigma = noise_multiplier_for(job.epsilon, job.delta,
                                 PoissonSampler(SIZE, job.batch, steps(job), seed=0))
    job = replace(job, noise_multiplier=sigma)
    settings = asdict(job) | {
        "steps": steps(job), "rate": job.batch / SIZE, "opacus": version("opacus")
    }
    record = Record(RESULTS, 60 * asked.minutes, settings)
    for key in record.missing(
        [f"{who} {seed}" for seed in range(asked.seeds) for who in ("fxperex", "opacus")]):
        who, seed = key.split()
        one = replace(job, seed=int(seed))
        found = run(one, plain=False).accuracy if who == "fxperex" else opacus(one)
        record.add(key, {"accuracy": 100 * found})
        print(f"{key}: {found:.2%}", flush=True)
    if all(f"{who} {seed}" in record.rows
           for seed in range(asked.seeds)
           for who in ("fxperex", "opacus")):
        record.add("summary", summary(record.rows, asked.seeds))
        print(record.rows["summary"])


if __name__ == "__main__":
    main()
