"""Strategies, layer kinds and passes, held to the float64 loop of single-example backwards.

Each sample's step runs with the strategy at every site where it is legal. Norms, weighted sums and
stored gradients are compared with the loop; rows that do not count must add nothing.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fxperex.contract import LayerKind, Sample
from fxperex.costs import Cost
from fxperex.errors import ConfigError, FxperexError
from fxperex.plan.plan import Choice
from fxperex.registry import kinds, strategies
from fxperex.rewrite.passes.users import counted, user_passes
from fxperex.runtime.module import PerExampleModule
from fxperex.testing import clipped, error, loop
from fxperex.transform import outline, transform

LIMITS = {torch.float64: 1e-10, torch.float32: 2e-5}  # relative errors that rounding explains
DTYPES = tuple(LIMITS)  # all for the first sample, float64 for the others
# What each of the library's strategies reads of a layer kind.
READS = {
    "direct": "per_example", "ghost": "factors, gram, out_gram and weighted_sum",
    "unfold": "factors and fold", "outer": "factors and weighted_sum",
    "fused": "factors and weighted_sum", "fused_stored": "factors and fold",
    "crb": "geometry, ordered and factors", "multi": "example_output", "vmap": "example_output"
}


class CheckError(FxperexError, AssertionError):
    """An extension does not do what it says: the message has sample, strategy and figures."""


def check_strategy(name: str, samples: Iterable[Sample] | None = None,
                   per_kind: int = 3) -> tuple[str, ...]:
    """Returns the sites at which strategy `name` was held to the float64 loop, in words.

    samples: (module, batch) pairs; by default the first `per_kind` samples of every layer kind.
    Raises CheckError if it is legal nowhere or wrong anywhere, ConfigError for an unknown name.
    """
    if name not in strategies():
        raise ConfigError(f"no strategy {name!r} is registered; there are: "
                          f"{', '.join(strategies())}")
    checked: list[str] = []
    refused: dict[str, str] = {}
    for label, sample in _labelled(samples, per_kind):
        for dtype in DTYPES if not checked else DTYPES[:1]:
            model, batch = _cast(sample, dtype)
            choices = _choices(model, batch, label)
            refused |= {f"{c.site.name} of {label}": c.refused[name]
                        for c in choices if name in c.refused}
            served = [c for c in choices if name in c.costs]
            for choice in served:
                _check_cost(name, choice.costs[name], f"{choice.site.name} of {label}")
            if served:
                _hold(name, model, batch, f"{label}, {dtype}")
                checked += [f"{c.site.name} of {label}, {dtype}" for c in served]
    if not checked:
        reasons = "; ".join(f"{site}: {why}" for site, why in list(refused.items())[:6])
        raise CheckError(f"strategy {name!r} is legal at no site of the samples. {reasons}")
    return tuple(checked)


def check_kind(name: str, samples: Iterable[Sample] | None = None) -> tuple[str, ...]:
    """Returns the sites of layer kind `name` that were held to the float64 loop, in words.

    Every strategy runs that is legal there and reads what the kind defines. samples: (module,
    batch) pairs; by default the kind's own. Raises CheckError if no sample reaches the kind or a
    strategy is wrong there, ConfigError for an unknown name.
    """
    if name not in kinds():
        raise ConfigError(f"no layer kind {name!r} is registered; there are: {', '.join(kinds())}")
    pairs = list(kinds()[name].samples() if samples is None else samples)
    if not pairs:
        raise CheckError(f"layer kind {name!r} has no samples(): return small (module, batch) "
                         "pairs there, or pass samples=[...]")
    checked: list[str] = []
    for number, sample in enumerate(pairs):
        label = f"sample {number} of {name}"
        for dtype in DTYPES if number == 0 else DTYPES[:1]:
            model, batch = _cast(sample, dtype)
            choices = _choices(model, batch, label)
            own = [c for c in choices if any(use.kind == name for use in c.site.each)]
            if not own:
                nodes = ", ".join(f"{c.site.op} ({c.site.kind})" for c in choices)
                raise CheckError(f"{label} reaches no site of kind {name!r}: its parameters are "
                                 f"used by {nodes}. Does claims() know the operator and the "
                                 "argument, and is no kind of a lower order first?")
            for way in dict.fromkeys(w for c in own for w in c.costs if _reads(w, name)):
                reads = f" (it reads {READS[way]})" if way in READS else ""
                _hold(way, model, batch, f"{label}, {dtype}", reads)
                checked += [f"{c.site.name} of {label}, {dtype}: {way}"
                            for c in own if way in c.costs]
    return tuple(checked)


def check_pass(name: str, samples: Iterable[Sample] | None = None,
               per_kind: int = 1) -> tuple[str, ...]:
    """Returns the samples whose step graph the pass `name` changed, with the nodes it changed.

    Every sample's step is held to the float64 loop with the pass in it. samples: (module, batch)
    pairs; by default the first `per_kind` of every layer kind. Raises CheckError if a step is
    wrong or no graph was changed, ConfigError for an unknown name.
    """
    if name not in user_passes():
        raise ConfigError(f"no pass {name!r} is registered; there are: {', '.join(user_passes())}")
    checked: list[str] = []
    for label, sample in _labelled(samples, per_kind):
        model, batch = _cast(sample, torch.float64)
        with counted(name) as counts:
            _hold("auto", model, batch, f"{label}, with the pass {name!r}")
        if sum(counts):
            checked.append(f"{label}: {max(counts)} nodes")
    if not checked:
        raise CheckError(f"pass {name!r} changed no step graph of the samples: pass samples=[...] "
                         "with modules that it is for")
    return tuple(checked)


def _reads(strategy: str, kind: str) -> bool:
    """Returns True if the strategy's result depends on what the layer kind defines."""
    own_output = type(kinds()[kind]).example_output is not LayerKind.example_output
    return own_output or READS.get(strategy) != "example_output"


def _labelled(samples: Iterable[Sample] | None, per_kind: int) -> Iterator[tuple[str, Sample]]:
    if samples is not None:
        yield from ((f"sample {i}", sample) for i, sample in enumerate(samples))
        return
    for name, kind in kinds().items():
        for i, sample in enumerate(kind.samples()[:per_kind]):
            yield f"sample {i} of {name}", sample


def _cast(sample: Sample, dtype: torch.dtype) -> Sample:
    model, batch = sample
    cast = tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)
    return copy.deepcopy(model).to(dtype), cast


def _curved(model: nn.Module, *batch: Tensor) -> Tensor:
    """Returns a loss `[B]` whose output gradients differ by element and example."""
    out = model(*batch)
    out = out[0] if isinstance(out, tuple) else out
    weights = torch.linspace(0.5, 2.0, out[0].numel(), dtype=out.dtype).reshape(out.shape[1:])
    return ((out * weights).sin() + out**2 / 3).flatten(1).sum(1)


def _choices(model: nn.Module, batch: tuple[Tensor, ...], label: str) -> tuple[Choice, ...]:
    try:
        return outline(model, batch, forward=_curved).plan.choices
    except FxperexError as failure:
        raise CheckError(f"{label}: {failure}") from failure


def _check_cost(name: str, cost: Cost, place: str) -> None:
    numbers = {"bytes": cost.bytes, "held": cost.held, "transient": cost.transient,
               "launches": cost.launches} | {f"work {w.kernel}": w.amount for w in cost.work}
    for field, number in numbers.items():
        if not math.isfinite(number) or number < 0:
            raise CheckError(f"strategy {name!r} at {place}: its cost has {field} = {number}")
    if strategies()[name].stores and not cost.held:
        raise CheckError(f"strategy {name!r} at {place}: it stores per-example gradients, and its "
                         "cost has held = 0: the planner would not count their bytes")


def _hold(name: str, model: nn.Module, batch: tuple[Tensor, ...], label: str,
          reads: str = "") -> None:
    """Raises CheckError unless the step of `model` with strategy `name` equals the loop."""
    truth = loop(model, _curved, batch)
    _, norms = clipped(truth, 1.0)
    place, limit = f"strategy {name!r}{reads} at {label}", LIMITS[next(model.parameters()).dtype]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            private = transform(model, batch, forward=_curved, strategy=name, backend="eager",
                                clip=0.7 * float(norms.median()) or 1.0)
            _hold_norms(private, batch, norms, place, limit)
            _hold_sums(private, batch, truth, place, limit)
            if name in strategies() and strategies()[name].stores:
                _hold_stored(private, batch, truth, place, limit)
    except CheckError:
        raise
    except FxperexError as failure:
        raise CheckError(f"{place}: {failure}") from failure


def _hold_norms(private: PerExampleModule, batch: tuple[Tensor, ...], norms: Tensor, place: str,
                limit: float) -> None:
    ratio = private.norms(*batch).double() / norms.clamp(min=1e-30)
    low, high = float(ratio.min()), float(ratio.max())
    if not low >= 1 - limit:
        raise CheckError(f"{place}: the norm of example {int(ratio.argmin())} is {low:.6g} of the "
                         "true one. Clipped by it, the example would pass the clip bound: norms "
                         "must never be low")
    if not high <= 1 + limit:
        raise CheckError(f"{place}: the norm of example {int(ratio.argmax())} is {high:.6g} times "
                         "the true one. That is safe, and clips more than was asked for")


def _hold_sums(private: PerExampleModule, batch: tuple[Tensor, ...], truth: dict[str, Tensor],
               place: str, limit: float) -> None:
    """All rows count, then all but the last: a row that does not count must add nothing."""
    scale = 1e-3 * max(float(g.norm()) for g in truth.values())
    for rows, what in ((len(batch[0]), "weighted sum"),
                       (len(batch[0]) - 1, "weighted sum without the last row")):
        result, sums = private.sums(*(x[:rows] for x in batch))
        for name, total in zip(private.parameters, sums, strict=True):
            true = torch.einsum("b,b...->...", result.factors.double(), truth[name][:rows])
            if tuple(total.shape) != tuple(true.shape):
                raise CheckError(f"{place}: the {what} of {name} has shape {list(total.shape)}, "
                                 f"and the parameter {list(true.shape)}")
            far = error(total, true, scale)
            if not far <= limit:
                raise CheckError(f"{place}: the {what} of {name} is off by {far:.2g} of its size; "
                                 f"rounding explains {limit:.0e}")


def _hold_stored(private: PerExampleModule, batch: tuple[Tensor, ...], truth: dict[str, Tensor],
                 place: str, limit: float) -> None:
    gradients = private.gradients(*batch)
    for name, true in truth.items():
        far = error(gradients[name], true, 1e-3 * float(true.norm()))
        if not far <= limit:
            raise CheckError(f"{place}: the stored gradients of {name} are off by {far:.2g} of "
                             f"their size; rounding explains {limit:.0e}")
