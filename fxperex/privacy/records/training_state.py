"""What a checkpoint holds: model, optimizer and progress as (named tensors, plain values)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxperex.errors import LedgerError
from fxperex.privacy.run import PrivateRun
from fxperex.privacy.versions import versions

Tensors = dict[str, Tensor]


def capture_run(run: PrivateRun) -> tuple[Tensors, dict[str, Any]]:
    """Returns (tensors by name, values for JSON) of a run between two of its steps."""
    tensors, plain = capture(run.private.model, run.optimizer)
    more, states = run.registered.capture()
    adaptive = run.mechanism.adaptive
    return tensors | more, {"step": run.steps_done, "generation": run.generation,
                            "optimizer": plain, "clip bound": adaptive and adaptive.bound,
                            "plan": str(run.private.plan), "registered": states,
                            "versions": versions()}


def restore_run(run: PrivateRun, tensors: Tensors, plain: dict[str, Any]) -> None:
    """Puts a run, in place, to what `capture_run` returned. Raises LedgerError if it does not fit.
    """
    restore(run.private.model, run.optimizer, tensors, plain["optimizer"])
    run.steps_done, run.generation = plain["step"], plain["generation"]
    run.registered.resume(run.steps_done, tensors, plain.get("registered", {}),
                          lambda: restore_settings(run.optimizer, plain["optimizer"]))
    if run.mechanism.adaptive is not None:
        run.mechanism.adaptive.bound = plain["clip bound"]


def capture(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Returns (tensors by name, values for JSON) of model and optimizer."""
    tensors: Tensors = {f"model.{n}": t for n, t in _model(model).items()}
    held = optimizer.state_dict()
    values: dict[str, dict[str, Any]] = {}
    for index, entries in held["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                values.setdefault(str(index), {})[name] = value
    return tensors, {"values": values, "groups": [_plain(g) for g in held["param_groups"]]}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors,
            plain: dict[str, Any]) -> None:
    """Puts model and optimizer, in place, to what `capture` returned. Raises LedgerError if they
    do not fit.
    """
    ours = _model(model)
    theirs = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    differ = [n for n in ours | theirs if n not in ours or n not in theirs
              or ours[n].shape != theirs[n].shape or ours[n].dtype != theirs[n].dtype]
    if differ:
        raise LedgerError(f"the checkpoint is of another model: {', '.join(differ[:5])} differ in "
                          "name, shape or dtype")
    with torch.no_grad():
        for name, value in theirs.items():
            ours[name].copy_(value)
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in plain["values"].items()}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, entry = name.split(".", 2)
            state.setdefault(int(index), {})[entry] = value
    fresh = optimizer.state_dict()["param_groups"]
    groups = [_like(g, current) for g, current in zip(plain["groups"], fresh, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def restore_settings(optimizer: torch.optim.Optimizer, plain: dict[str, Any]) -> None:
    """Puts learning rates and the like of each group to those of a checkpoint, in place."""
    for group, held in zip(optimizer.param_groups, plain["groups"], strict=True):
        for name, value in _like(held, group).items():
            if isinstance(group.get(name), Tensor):
                group[name].fill_(value)
            elif name != "params":
                group[name] = value


def _like(group: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """`group` with a tuple where `current` has one: JSON has none."""
    return {k: tuple(v) if isinstance(current.get(k), tuple) else v for k, v in group.items()}


def _model(model: nn.Module) -> Tensors:
    return {n: t for n, t in [*model.named_parameters(), *model.named_buffers()]}


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()}
