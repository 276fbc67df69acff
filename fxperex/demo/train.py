"""The demonstration: a small network trained privately, and the same network without privacy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxperex.demo.data import Data, load, standardise
from fxperex.errors import ConfigError
from fxperex.privacy.checks import positive, whole_number
from fxperex.privacy.engine import PrivacyEngine
from fxperex.runtime.module import PerExampleModule
from fxperex.transform import transform

# Rows of a compiled step over the expected batch: room for a Poisson batch of 256 that is four
# standard deviations too large.
HEADROOM = 1.25
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class Job:
    """One training run; the defaults are those of `fxperex train digits`."""

    data: str = "digits"
    epsilon: float = 3.0
    delta: float = 1e-4
    epochs: float = 40
    batch: int = 256
    clip: float = 0.5
    lr: float = 1e-2
    seed: int = 0
    strategy: str = "auto"
    backend: str = "eager"
    physical_batch: int | None = None
    noise_multiplier: float | None = None  # from an earlier run with the same settings
    folder: str | None = None  # of ledger and checkpoints; an existing run there is resumed


@dataclass(frozen=True)
class Outcome:
    """Held-out accuracy in [0, 1], that without privacy (None: not trained), and what was spent."""

    accuracy: float
    plain: float | None
    epsilon: float
    delta: float
    noise_multiplier: float
    steps: int


def network(shape: tuple[int, ...], classes: int, width: int = 16) -> nn.Module:
    """Returns a two-layer convolutional network from images `[B, *shape]` to logits `[B, classes]`.

    Tanh, because bounded activations keep gradients small under clipping (Papernot et al., arXiv
    2007.14191).
    """
    channels, height, side = shape
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
                         nn.Conv2d(width, width, 3, padding=1), nn.Tanh(), nn.Flatten(),
                         nn.Linear(width * (height // 2) * (side // 2), classes))


def prepare(job: Job, data: Data) -> tuple[PerExampleModule, PrivacyEngine]:
    """Returns the transformed model of `job` and the engine that trains it. Raises FxperexError."""
    rows = job.physical_batch or math.ceil(whole_number(job.batch, "batch", 1) * HEADROOM)
    x, y = standardise(data.train[0]), data.train[1]
    private = transform(_model(job, data), (x[:2], y[:2]), nn.functional.cross_entropy,
                        clip=job.clip, strategy=job.strategy, backend=job.backend,
                        physical_batch=rows)
    optimizer = torch.optim.Adam(private.parameters.values(), lr=positive(job.lr, "lr"))
    noise = ({"epsilon": job.epsilon} if job.noise_multiplier is None
             else {"noise_multiplier": job.noise_multiplier})
    return private, PrivacyEngine(private, optimizer, (x, y), expected_batch=job.batch,
                                  epochs=job.epochs, delta=job.delta, seed=job.seed,
                                  folder=job.folder, **noise)


def run(job: Job, *, plain: bool = True, progress: Progress | None = None,
        tell: Callable[[PerExampleModule], object] | None = None) -> Outcome:
    """Returns the Outcome of `job`. Raises FxperexError.

    plain: train without privacy too. tell: called with the transformed model before training.
    """
    data, show = load(job.data), progress or (lambda items, total, what: items)
    private, engine = prepare(job, data)
    if tell is not None:
        tell(private)
    for _ in show(engine, len(engine), "private"):
        pass
    without = _plain(job, data, len(engine), show) if plain else None
    return Outcome(accuracy(private.model, data.test), without, engine.epsilon(), job.delta,
                   engine.noise_multiplier, engine.steps_done)


def accuracy(model: nn.Module, pair: tuple[Tensor, Tensor]) -> float:
    """Returns the share of `pair` = (images in [0, 1], labels) that `model` labels correctly."""
    with torch.no_grad():
        predicted = torch.cat([model(standardise(x)).argmax(1) for x in pair[0].split(1024)])
    return float((predicted == pair[1]).double().mean())


def main(job: Job, seeds: int = 1) -> list[Outcome]:
    """Returns the Outcomes of runs with the seeds from `job.seed` on, and prints them. Raises
    FxperexError.
    """
    whole_number(seeds, "seeds", 1)
    outcomes: list[Outcome] = []
    for i in range(seeds):
        # The noise does not depend on the seed: it is computed once.
        noise = outcomes[0].noise_multiplier if outcomes else job.noise_multiplier
        outcomes.append(run(replace(job, seed=job.seed + i, noise_multiplier=noise), progress=_bar,
                            tell=None if outcomes else PerExampleModule.explain))
        print(_line(outcomes[-1], f"seed {job.seed + i}"))
    if seeds > 1:
        print(f"mean of {seeds}: {_mean([o.accuracy for o in outcomes]):.2%} private, "
              f"{_mean([o.plain or 0.0 for o in outcomes]):.2%} without")
    print("a seeded run is for science: whoever knows the seed can subtract the noise")
    return outcomes


def _line(o: Outcome, what: str) -> str:
    return (f"{what}: held-out accuracy {o.accuracy:.2%} with (epsilon {o.epsilon:.3f}, delta "
            f"{o.delta:g})-DP (noise {o.noise_multiplier:.3f}, {o.steps} steps); "
            f"{o.plain or 0.0:.2%} without privacy")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _model(job: Job, data: Data) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        return network(data.shape, data.classes)


def _plain(job: Job, data: Data, steps: int, show: Progress) -> float:
    """Returns the accuracy with the same initial weights, optimizer, steps and mean batch size, but
    without clipping and noise.
    """
    model, (x, y) = _model(job, data), (standardise(data.train[0]), data.train[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=job.lr)
    draws = torch.Generator().manual_seed(job.seed)
    for _ in show(range(steps), steps, "without"):
        rows = torch.randint(len(x), (job.batch,), generator=draws)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return accuracy(model, data.test)


def _bar(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    try:
        from rich.progress import track
    except ImportError as e:
        raise ConfigError('the progress bar needs rich: pip install "fxperex[demo]"') from e
    with contextlib.closing(iter(track(items, what, total))) as shown:  # type: ignore[type-var]
        yield from shown
