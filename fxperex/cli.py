"""The command line: `fxperex train`, `fxperex strategies`, `fxperex explain`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxperex import registry
from fxperex.compiler import BACKENDS
from fxperex.errors import ConfigError, FxperexError
from fxperex.transform import transform


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after a refusal, told on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except FxperexError as e:
        print(f"fxperex: {e}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fxperex", description="Differentially private training of torch models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _train_options(commands.add_parser("train", help="train a small network privately, beside the same without"))
    listed = commands.add_parser("strategies", help="list the layer kinds and strategies")
    listed.set_defaults(run=_strategies)
    _explain_options(commands.add_parser("explain", help="print the plan of a model"))
    return parser


def _train_options(parser: argparse.ArgumentParser) -> None:
    from fxperex.training import Job

    default = Job()
    parser.add_argument("job", nargs="?", choices=["digits"], default="digits")
    parser.add_argument("--data", help="mnist:PATH or cifar10:PATH instead of the digits")
    for name in ("epsilon", "delta", "epochs", "clip", "lr"):
        parser.add_argument(f"--{name}", type=float, default=getattr(default, name), help="default %(default)s")
    parser.add_argument("--batch", type=int, default=default.batch, help="expected batch, default %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs, averaged")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the first run")
    parser.add_argument("--strategy", default=default.strategy)
    parser.add_argument("--backend", choices=BACKENDS, default=default.backend)
    parser.add_argument("--physical-batch", type=int, help="rows of one compiled step")
    parser.set_defaults(run=_train)


def _explain_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="torchvision:resnet18 or package.module:factory")
    parser.add_argument("--input", default="3x32x32", help="shape of one example, default %(default)s")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--memory", help='what the plan may hold, as "16GiB"')
    parser.set_defaults(run=_explain)


def _train(options: argparse.Namespace) -> None:
    from fxperex import training

    given = {k: v for k, v in vars(options).items() if k not in ("job", "run", "seeds")}
    training.main(training.Job(**given | {"data": options.data or options.job}), options.seeds)


def _strategies(_: argparse.Namespace) -> None:
    for title, table in (("layer kinds", registry.kinds()), ("strategies", registry.strategies())):
        print(title)
        for name, entry in table.items():
            module = inspect.getmodule(type(entry))
            told = (getattr(module, "__doc__", None) or "").strip().partition("\n")[0]
            print(f"  {name:<14} {told}\n  {'':<14} {getattr(module, '__file__', None) or 'interactive'}")


def _explain(options: argparse.Namespace) -> None:
    shape = _shape(options.input)
    if options.batch < 1 or options.classes < 1:
        raise ConfigError(f"--batch and --classes must be above 0; got {options.batch} and {options.classes}")
    batch = (torch.zeros(options.batch, *shape), torch.zeros(options.batch, dtype=torch.long))
    transform(_model(options.model, options.classes), batch, nn.functional.cross_entropy,
              strategy=options.strategy, memory=options.memory, backend="eager").explain()


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise ConfigError(f"--input must be sizes joined by x, as 3x32x32; got {text!r}")
    return shape


def _model(name: str, classes: int) -> nn.Module:
    """Returns the model `name` means, with `classes` outputs where its factory takes a number. Raises ConfigError."""
    package, _, factory = name.partition(":")
    if not package or not factory:
        raise ConfigError(f"MODEL must be torchvision:NAME or package.module:factory; got {name!r}")
    try:
        made = getattr(importlib.import_module("torchvision.models" if package == "torchvision" else package), factory)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"cannot find {name!r}: {e}") from e
    model = _call(made, classes, package == "torchvision")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def _call(made: Any, classes: int, vision: bool) -> Any:
    if not callable(made) or isinstance(made, nn.Module):
        return made
    if vision:
        return made(num_classes=classes)
    return made(**({"num_classes": classes} if "num_classes" in inspect.signature(made).parameters else {}))
