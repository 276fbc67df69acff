"""Whole private steps of small models against a float64 loop, and the bound of one example under
torch's own flags."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

import fxperex
from fxperex.testing import clipped, error, loop
from gpu_stages.rows import Rows
from gpu_stages.setting import DTYPES, TOLERANCE, Setting, precision
from gpu_stages.small_models import ROWS, SMALL, Small, curved

BOUND = 1 + 2.0**-20
STRATEGIES = ("auto", "ghost", "fused", "fused_stored", "outer")
DATA = ("random", "constant", "cancelling")


def run(setting: Setting, part: str, rows: Rows) -> None:
    dtypes = ("float32", "bfloat16") if setting.tiny else DTYPES
    compiled = () if setting.backend == "eager" else dtypes
    small = SMALL[part]
    for dtype in dtypes:
        rows.run(f"eager {dtype}", against_the_loop, small, setting, "eager", dtype)
    for strategy in STRATEGIES[:2] if setting.tiny else STRATEGIES:
        rows.run(f"bound {strategy}", bound, small, setting, strategy)
    for dtype in compiled:
        rows.run(f"inductor {dtype}", against_the_loop, small, setting, "inductor", dtype)


def against_the_loop(small: Small, setting: Setting, backend: str, dtype: str) -> dict[str, Any]:
    """Returns relative errors of norms, factors and clipped sum of a full batch, and of a short one
    after it."""
    torch.manual_seed(0)
    model = small.make().to(setting.device)
    batch = small.batch(ROWS, setting.device)
    truth = loop(model, curved, batch)
    clip = 0.7 * float(clipped(truth, 1.0)[1].median())
    with precision(dtype) as autocast, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        private = fxperex.transform(
            model, batch, forward=curved, clip=clip, autocast=autocast, backend=backend
        )
        errors = {f"{what} of {count} rows": size for count in (ROWS, ROWS - 1)
                  for what, size in differences(private, batch, truth, clip, count).items()}
    wrong = [
        f"{what} is off by {size:.1e}"
        for what, size in errors.items()
        if not size <= TOLERANCE[dtype]
    ]
    fell = [f"ran on {private.backend}, not {backend}"] if private.backend != backend else []
    return {
        "wrong": wrong + fell,
        "errors": errors,
        "backend": private.backend,
        "tolerance": TOLERANCE[dtype],
        "warnings": sorted({str(w.message)[:200] for w in said}),
        "strategies": {c.site.name: c.strategy for c in private.plan.choices},
    }


def differences(
    private: fxperex.PerExampleModule,
    batch: tuple[Tensor, ...],
    truth: dict[str, Tensor],
    clip: float,
    count: int,
) -> dict[str, float]:
    """Returns relative errors of the step of the first `count` rows against the truth about
    them."""
    total, norms = clipped({n: g[:count] for n, g in truth.items()}, clip)
    result, sums = private.sums(*(x[:count] for x in batch))
    return {
        "norms": error(result.norms, norms),
        "factors": error(result.factors, (clip / norms).clamp(max=1.0)),
        "sum": error(flat(sums), flat([total[n] for n in private.parameters])),
    }


def bound(small: Small, setting: Setting, strategy: str) -> dict[str, Any]:
    """Returns by how much one example's emitted gradient is longer than the clip bound, as a share
    of it: at most 2^-20.

    Flags are torch's own: cuDNN may use TF32 then. In float32, and under bfloat16 autocast.
    """
    over: dict[str, float] = {}
    for autocast in (None, torch.bfloat16):
        torch.manual_seed(1)
        model = small.make().to(setting.device)
        batch = small.batch(ROWS, setting.device)
        private = fxperex.transform(
            model,
            batch,
            forward=curved,
            clip=1e-2,
            strategy=strategy,
            autocast=autocast,
            backend="eager",
        )
        for kind in DATA:
            sums = private.sums(*small.batch(1, setting.device, kind))[1]
            over[f"{kind}, {'float32' if autocast is None else 'bfloat16'}"] = (
                float(flat(sums).norm()) / 1e-2 - 1
            )
    return {
        "over": over,
        "wrong": [
            f"{kind}: {size:.1e} above the bound"
            for kind, size in over.items()
            if not size <= BOUND - 1
        ],
    }


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.double().flatten() for x in tensors])
