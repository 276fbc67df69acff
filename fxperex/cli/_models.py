"""What several commands share: a model by name, a stand-in batch, and the options for both."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
                        help="torchvision:resnet50, timm:convnext_tiny, transformers:gpt2, or "
                             "package.module:factory, which returns a model, or (model, batch, "
                             "loss)")
    parser.add_argument("--input", help="shape of one example, default 3x32x32; of transformers "
                                        "the number of tokens, default 128")
    parser.add_argument("--tokens", type=int, metavar="N",
                        help="inputs are token numbers below N, of the shape --input")
    parser.add_argument("--batch", type=int, default=16,
                        help="examples of a batch, default %(default)s")
    parser.add_argument("--classes", type=int, default=10,
                        help="passed as num_classes if the factory takes it")
    parser.add_argument("--norm", choices=["group", "batch"], default="group",
                        help="every BatchNorm becomes a GroupNorm and other normalisations stay; "
                             "batch: all stay")


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
    _positive(options)
    asked = subject(options, "meta")
    outlined = outline(asked.model, asked.batch, asked.loss, forward=asked.forward,
                       strategy=options.strategy, memory=options.memory,
                       physical_batch=_rows(options.physical_batch), device=device)
    return outlined, trace_frames(outlined.capture, outlined.analysis), profile(device)


@dataclass(frozen=True)
class Subject:
    """What a command looks at: a model, a batch, and how they give a loss, as `transform` takes
    them.
    """

    model: nn.Module
    batch: Any
    loss: Callable[..., Tensor] | None = None
    forward: Callable[..., Tensor] | None = None


def subject(options: argparse.Namespace, device: str) -> Subject:
    """Returns the Subject that the options name, on `device`, without weights of others. Raises
    ConfigError.
    """
    _positive(options)
    package, _, name = options.model.partition(":")
    with torch.device(device):
        if package == "transformers":
            ids = torch.zeros(options.batch, *_shape(options.input or "128"), dtype=torch.long)
            return Subject(_of_transformers(name), (ids,), forward=_language_loss)
        built = _built(options.model, options.classes)
        if isinstance(built, tuple):
            return _of_parts(options.model, built, device)
        if not isinstance(built, nn.Module):
            raise ConfigError(f"{options.model} made a {type(built).__name__}, not a "
                              "torch.nn.Module, nor (model, batch), nor (model, batch, loss)")
        if options.norm == "group":
            replace_batch_norms(built)
        return Subject(built, stand_in(options, device), LOSS)


def _of_parts(name: str, built: tuple[Any, ...], device: str) -> Subject:
    if len(built) not in (2, 3) or not isinstance(built[0], nn.Module):
        raise ConfigError(f"{name} must return a model, (model, batch) or (model, batch, loss); "
                          f"got a tuple of {len(built)} that begins with a "
                          f"{type(next(iter(built), None)).__name__}")
    batch = mapped(lambda x: x.to(device) if isinstance(x, Tensor) else x, built[1])
    return Subject(built[0], batch, built[2] if len(built) == 3 else None)


def _of_transformers(name: str) -> nn.Module:
    """The model of an architecture's default configuration, with the head that has a loss over
    tokens.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("transformers:NAME needs the package: pip install transformers"
                          ) from error
    try:
        config = transformers.AutoConfig.for_model(name)
    except ValueError as error:
        raise ConfigError(f"transformers knows no architecture {name!r}; one is gpt2") from error
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM):
        if type(config) in auto._model_mapping:
            return auto.from_config(config)
    raise ConfigError(f"{name} has no language-model head; write a factory that returns (model, "
                      "batch, loss)")


def _language_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss


def stand_in(options: argparse.Namespace, device: str) -> tuple[Tensor, Tensor]:
    """Returns a batch (inputs, targets) of the options' shape. Raises ConfigError."""
    shape = (options.batch, *_shape(options.input or "3x32x32"))
    targets = torch.zeros(options.batch, dtype=torch.long, device=device)
    if options.tokens is not None:
        return torch.randint(0, options.tokens, shape, device=device), targets
    make = torch.empty if device == "meta" else torch.randn
    return make(*shape, device=device), targets


def _positive(options: argparse.Namespace) -> None:
    if options.tokens is not None and options.tokens < 1:
        raise ConfigError(f"--tokens must be above 0; got {options.tokens}")
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


def _built(name: str, classes: int) -> Any:
    package, _, factory = name.partition(":")
    if not package or not factory:
        raise ConfigError("MODEL must be torchvision:NAME, timm:NAME, transformers:ARCHITECTURE or "
                          f"package.module:factory; got {name!r}")
    # The user's own modules are in the current folder, as for `python -m`.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = {"torchvision": "torchvision.models"}.get(package, package)
    try:
        source = importlib.import_module(module)
        build = partial(source.create_model, factory, pretrained=False, num_classes=classes) \
            if package == "timm" else getattr(source, factory)
    except Exception as e:  # whatever the user's module raises when it is imported
        raise ConfigError(f"cannot find {name!r}: {type(e).__name__}: {e}") from e
    try:
        return _call(build, classes)
    except Exception as e:
        raise ConfigError(f"{name} could not be called: {type(e).__name__}: {e}") from e


def _call(factory: Any, classes: int) -> Any:
    """Returns what the factory makes; an object that is no factory is returned as it is."""
    if not callable(factory) or isinstance(factory, nn.Module | partial):
        return factory() if isinstance(factory, partial) else factory
    parameters = inspect.signature(factory).parameters
    torchvisions = getattr(factory, "__module__", "").startswith("torchvision.")
    takes = "num_classes" in parameters or torchvisions
    return factory(**{"num_classes": classes} if takes else {})


def replace_batch_norms(model: nn.Module) -> None:
    """Puts a GroupNorm into the place of every BatchNorm of `model`, a model that is nobody's yet;
    every other normalisation stays.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                module._modules[name] = group_norm(child.num_features)


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns the GroupNorm that replaces a BatchNorm of as many channels."""
    return nn.GroupNorm(next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0), channels)
