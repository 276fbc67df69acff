"""What several commands share: a model by name, a stand-in batch, and the options for both."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxperex.capture.structure import mapped
from fxperex.devices import Profile, profile, target
from fxperex.errors import ConfigError
from fxperex.rewrite.frame import Frames, trace_frames
from fxperex.transform import Outline, outline

Loss = Callable[..., Any]
LOSS: Loss = nn.functional.cross_entropy


def model_options(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL and the shape of its input."""
    parser.add_argument("model", metavar="MODEL",
                        help="torchvision:resnet50, or package.module:factory; a factory "
                             "may also return (model, batch) or (model, batch, loss)")
    parser.add_argument("--input", default="3x32x32",
                        help="shape of one example, default %(default)s")
    parser.add_argument("--batch", type=int, default=16,
                        help="examples of a batch, default %(default)s")
    parser.add_argument("--classes", type=int, default=10,
                        help="passed as num_classes if the factory takes it")
    parser.add_argument("--norm", choices=["group", "batch"], default="group",
                        help="torchvision models that take a norm_layer get GroupNorm; batch "
                             "keeps their own")


def plan_options(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL and what a plan depends on."""
    model_options(parser)
    parser.add_argument("--device", default="cpu",
                        help="plan for this device, which need not be present; default %(default)s")
    parser.add_argument("--strategy", default="auto",
                        help="auto, or a strategy for every site at which it is legal")
    parser.add_argument("--memory", help='limit for the peak memory of the step, as "16GiB"')
    parser.add_argument("--physical-batch", help='rows of one compiled step, or "auto": the '
                                                 "planner chooses them, within --memory")


def planned(options: argparse.Namespace) -> tuple[Outline, Frames, Profile]:
    """Returns (outline, frames, profile) of the model, which has no weights: it is on the meta
    device. Raises FxperexError.
    """
    device = target(options.device)
    model, batch, loss = example(options, "meta")
    outlined = outline(model, batch, loss, strategy=options.strategy, memory=options.memory,
                       physical_batch=_rows(options.physical_batch), device=device)
    return outlined, trace_frames(outlined.capture, outlined.analysis), profile(device)


def example(options: argparse.Namespace, device: str) -> tuple[nn.Module, Any, Loss | None]:
    """Returns (model, batch, loss) that the options name, on `device`: the factory's own batch and
    loss, or a stand-in batch of the options' shape and cross entropy. Raises ConfigError.
    """
    _positive(options)
    with torch.device(device):
        model, *own = _model(options.model, options.classes, options.norm == "group")
    if not own:
        return model, stand_in(options, device), LOSS
    batch, loss = [*own, None][:2]
    return model, mapped(lambda x: x.to(device) if isinstance(x, Tensor) else x, batch), loss


def stand_in(options: argparse.Namespace, device: str) -> tuple[Tensor, Tensor]:
    """Returns a batch (inputs, targets) of the options' shape. Raises ConfigError."""
    shape = _shape(options.input)
    make = torch.empty if device == "meta" else torch.randn
    targets = torch.zeros(options.batch, dtype=torch.long, device=device)
    return make(options.batch, *shape, device=device), targets


def _positive(options: argparse.Namespace) -> None:
    if options.batch < 1 or options.classes < 1:
        raise ConfigError(f"--batch and --classes must be above 0; got {options.batch} and "
                          f"{options.classes}")


def _rows(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise ConfigError(f"--input must be sizes joined by x, as 3x32x32; got {text!r}")
    return shape


def _model(name: str, classes: int, group: bool) -> tuple[Any, ...]:
    """(model,), (model, batch) or (model, batch, loss), as the factory returns."""
    package, _, factory = name.partition(":")
    if not package or not factory:
        raise ConfigError(f"MODEL must be torchvision:NAME or package.module:factory; got {name!r}")
    # The user's own modules are in the current folder, as for `python -m`.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = "torchvision.models" if package == "torchvision" else package
    try:
        build = getattr(importlib.import_module(module), factory)
    except Exception as e:  # whatever the user's module raises when it is imported
        raise ConfigError(f"cannot find {name!r}: {type(e).__name__}: {e}") from e
    try:
        model = _call(build, classes, group and package == "torchvision")
    except Exception as e:
        raise ConfigError(f"{name} could not be called: {type(e).__name__}: {e}") from e
    parts = model if isinstance(model, tuple) else (model,)
    if not parts or not isinstance(parts[0], nn.Module) or len(parts) > 3:
        raise ConfigError(f"{name} made a {type(model).__name__}, not a torch.nn.Module, nor "
                          "(model, batch), nor (model, batch, loss)")
    return parts


def _call(factory: Any, classes: int, group: bool) -> Any:
    """Returns what the factory makes; an object that is no factory is returned as it is."""
    if not callable(factory) or isinstance(factory, nn.Module):
        return factory
    parameters = inspect.signature(factory).parameters
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values()) and group
    takes_classes = "num_classes" in parameters or anything
    options: dict[str, Any] = {"num_classes": classes} if takes_classes else {}
    if not group:
        return factory(**options)
    try:
        return factory(**options, norm_layer=group_norm)
    except TypeError:
        return factory(**options)


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns the GroupNorm that replaces a BatchNorm of as many channels."""
    return nn.GroupNorm(next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0), channels)
