"""What a folder is bound to: one run's mechanism, draws, model, target and, if asked, data."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import torch
from torch import Tensor

from fxperex.capture.structure import leaves
from fxperex.privacy.run import PrivateRun
from fxperex.privacy.sampling.rows import Rows
from fxperex.privacy.settings import Settings

Facts = dict[str, Any]
DATA = "data"
NAMED = 8  # differences that a message lists


def facts(run: PrivateRun, settings: Settings, same_data: bool) -> Facts:
    """Returns the facts of a run, ready for JSON. Reads four rows if `same_data`."""
    program = run.private.capture.print_readable(False)
    bound = {
        "mechanism": run.mechanism.describe(),
        "sampler": run.sampler.describe() | {"steps": run.sampler.steps},
        "model": hashlib.sha256(program.encode()).hexdigest(),
        "parameters": {n: [list(p.shape), str(p.dtype)]
                       for n, p in run.private.parameters.items()},
        "optimizer": type(run.optimizer).__name__, "randomness": run.randomness.description,
        "target": {"delta": settings.delta, "budget": settings.budget, "epsilon": settings.epsilon}}
    if same_data:
        bound[DATA] = fingerprint(run.rows, run.randomness.key(DATA))
    return bound


def fingerprint(rows: Rows, key: bytes) -> Facts:
    """Returns the number of rows, their shapes, and a keyed hash of four of them."""
    highest = rows.size - 1
    chosen = torch.tensor(sorted({0, highest // 3, 2 * highest // 3, highest}))
    digest = hmac.new(key, digestmod="sha256")
    for _, batch in rows.readable(chosen, 1):
        for x in leaves(batch or ()):
            digest.update(raw(x))
    shapes = [[list(x.shape[1:]), str(x.dtype)] for x in leaves(rows.nothing)]
    return {"examples": rows.size, "shapes": shapes, "values of four rows": digest.hexdigest()}


def raw(x: Tensor) -> bytes:
    """Returns the bytes of a tensor's elements in their order."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def differences(bound: Facts, ours: Facts) -> list[str]:
    """Returns a phrase for each fact in which `ours` is not what a folder is `bound` to.

    A fact that an earlier version did not record is not compared; data are, if asked for.
    """
    phrases = []
    for name, value in ours.items():
        if name in bound:
            phrases += _compared(name, bound[name], value)
        elif name == DATA:
            phrases.append("data were not recorded when it was made (same_data=True does)")
    more = [f"{len(phrases) - NAMED} more"] if len(phrases) > NAMED else []
    return phrases[:NAMED] + more


def _compared(name: str, bound: Any, ours: Any) -> list[str]:
    if bound == ours:
        return []
    if not isinstance(bound, dict) or not isinstance(ours, dict):
        return [f"{name} is {bound!r}, this engine's {ours!r}"]
    keys = [*bound, *(key for key in ours if key not in bound)]
    return [f"{name}: {key} is {bound.get(key)!r}, this engine's {ours.get(key)!r}"
            for key in keys if bound.get(key) != ours.get(key)]
