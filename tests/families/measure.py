"""One family measured: against the float64 loop, and against itself with the other examples
replaced.
"""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from dataclasses import dataclass

import torch
import zoo
from torch import Tensor

import fxperex
from fxperex.errors import FxperexError
from fxperex.testing import clipped, error, flat, loop, moved

for _room in ("vision", "generative", "language", "structured"):
    importlib.import_module(_room)


@dataclass(frozen=True)
class Row:
    """A line of the docs table. `refusal` holds the error where the family does not get through,
    else ''.
    """

    name: str
    group: str
    symbolic: bool
    sites: int
    strategies: dict[str, int]
    norms: float
    sums: float
    leak: float
    refusal: str = ""
    dropped: tuple[str, ...] = ()  # parameters called unused to which a gradient flows


def measure(name: str) -> Row:
    """Returns the Row of family `name` under `strategy="auto"`, float32, eager."""
    case, family = zoo.build(name), zoo.FAMILIES[name]
    truth = loop(case.model, case.forward, case.batch)
    clip = 0.5 * float(clipped(truth, 1.0)[1].median())
    total, norms = clipped(truth, clip)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            private = fxperex.transform(case.model, case.batch, forward=case.forward, clip=clip,
                                        backend="eager")
    except FxperexError as refusal:
        return Row(name, family.group, False, 0, {}, 0.0, 0.0, 0.0, str(refusal))
    result = private.step(*case.batch)
    named = dict(case.model.named_parameters())
    found = torch.cat([named[n].grad.double().flatten() for n in total])
    wanted = torch.cat([g.flatten() for g in total.values()])
    chosen = Counter(c.strategy for c in private.plan.choices)
    return Row(name, family.group, private.captured.symbolic, len(private.sites),
               dict(chosen.most_common()), error(result.norms, norms), error(found, wanted),
               leak(private, case.batch),
               dropped=tuple(n for n in private.analysis.unused if truth[n].any()))


def leak(private: fxperex.PerExampleModule, batch: tuple[Tensor, ...]) -> float:
    """Returns how far, relatively, the first example's gradient moves at most when the probes
    replace all others.
    """
    found = moved(lambda rows: flat(private.gradients(*rows)), batch, range(1))
    return max(far for _, _, far in found)
