"""What benchmarks share: a gradient checked against the truth before anything is timed, and fair
turns on the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import fxperex
from fxperex.capture.forward import as_forward
from fxperex.testing import clipped, error, loop

LIMIT = 1e-5  # relative error of the clipped sum, float32 against the float64 loop
CHECKED = 3  # examples that the loop goes through
# turns of every candidate before timing: steps side by side share a heap, which takes as many to
# have its shape
WARM = 4
MOST = 200  # rounds
# a candidate whose first call is so many times the fastest one's gets no further turns
HOPELESS = 10.0

Runs = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]
Batch = tuple[Tensor, ...]


def truth(model: nn.Module, batch: Batch, loss: nn.Module) -> tuple[Batch, Mapping[str, Tensor]]:
    """Returns (the batch, its rows turned; the clipped sum over its first CHECKED rows, in
    float64).

    Where ordinary float32 backwards, of a row alone or of the row in a full batch, disagree with
    the float64 one (a ReLU on its kink has two gradients) the rows are turned until they do not:
    there is no one gradient to agree on. Raises SystemExit where that helps nothing.
    """
    for turn in range(len(batch[0])):
        turned = tuple(x.roll(-turn, 0) for x in batch)
        some = tuple(x[:CHECKED] for x in turned)
        exact, single = (clipped(loop(model, as_forward(loss), some, dtype), 1.0)[0]
                         for dtype in (torch.float64, torch.float32))
        full, _ = clipped(_in_a_batch(model, turned, loss), 1.0)
        if all(
                error(found[n], exact[n], scale=1.0) < LIMIT
                for found in (single, full)
                for n in exact):
            return turned, exact
    raise SystemExit(f"no {CHECKED} rows of the batch have one gradient in float32 and in float64")


def _in_a_batch(model: nn.Module, batch: Batch, loss: nn.Module) -> dict[str, Tensor]:
    """Per-example gradients of the first rows, float64, from float32 backwards of a batch that the
    first row fills up.
    """
    *inputs, targets = (torch.cat(
        [x[:CHECKED], x[:1].expand(max(len(x) - CHECKED, 0), *x.shape[1:])]) for x in batch)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rows = []
    for b in range(min(CHECKED, len(targets))):
        one = loss(model(*inputs)[b:b + 1], targets[b:b + 1])
        grads = torch.autograd.grad(one, list(named.values()), allow_unused=True)
        rows.append([
            torch.zeros_like(p) if g is None else g
            for p, g in zip(named.values(), grads, strict=True)
        ])
    return {n: torch.stack([row[i] for row in rows]).double() for i, n in enumerate(named)}


def gradient_error(model: nn.Module, private: fxperex.PerExampleModule, batch: Batch,
                   total: Mapping[str, Tensor]) -> float:
    """Returns the relative error of the clipped sum of the first rows against `truth`'s; raises
    SystemExit where above LIMIT.
    """
    some = tuple(x[:CHECKED] for x in batch)
    model.zero_grad()
    private.step(*some)
    off = left_error(model, total)
    model.zero_grad()
    if not off <= LIMIT:
        raise SystemExit(f"wrong gradient: relative error {off:.1e}; nothing was timed")
    return off


def left_error(model: nn.Module, total: Mapping[str, Tensor]) -> float:
    """Returns the relative error of what is left in `.grad` against the clipped sum `total`; no
    gradient counts as zero.
    """
    named = dict(model.named_parameters())
    found = [torch.zeros_like(named[n]) if (g := named[n].grad) is None else g for n in total]
    return error(torch.cat([g.flatten() for g in found]),
                 torch.cat([g.flatten() for g in total.values()]))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(runs: Runs, rounds: int, spend: float = 0.0) -> Times:
    """Returns {name: seconds of each round}; every round runs every candidate once, after some
    turns to warm up.

    More than `rounds` of them, up to MOST, where they take less than `spend` seconds: of short
    calls a few tell little.
    """
    for call in [*runs.values()] * WARM:
        call()
    times: Times = {name: [] for name in runs}
    start, done = time.perf_counter(), 0
    while done < rounds or (done < MOST and time.perf_counter() - start < spend):
        for name, call in runs.items():
            times[name].append(seconds(call))
        done += 1
    return times


def race(runs: Runs, spend: float, least: int = 3, most: int = 50) -> Times:
    """Returns {name: seconds of each turn}, turns interleaved until `spend` seconds are gone;
    hopeless ones have one.
    """
    first = {name: seconds(call) for name, call in runs.items()}
    racing = [name for name in runs if first[name] <= HOPELESS * min(first.values())]
    times: Times = {name: [] if name in racing else [first[name]] for name in runs}
    end = time.perf_counter() + spend
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        for name in racing:
            times[name].append(seconds(runs[name]))
    return times


def medians(times: Times) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in times.items()}


def within(mine: list[float], best: list[float], share: float = 0.05) -> bool:
    """True where `mine` is at most `share` above `best`, or no slower in a quarter of the rounds
    that both ran: the noise.
    """
    ratios = sorted(a / b for a, b in zip(mine, best, strict=True))
    return statistics.median(mine) <= (1 + share) * statistics.median(best) or ratios[len(ratios) //
                                                                                      4] <= 1.0
