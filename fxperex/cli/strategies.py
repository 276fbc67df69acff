"""`fxperex strategies`: the layer kinds and strategies, with the files they are in."""

from __future__ import annotations

import argparse
import inspect

from fxperex import registry
from fxperex.rewrite import rewriter

HELP = "list the layer kinds and strategies, and where they are"
ONE_BY_ONE = "One example at a time, an ordinary backward each; also the ground truth."


def options(parser: argparse.ArgumentParser) -> None:
    pass


def run(_: argparse.Namespace) -> None:
    for title, table in (("layer kinds", registry.kinds()), ("strategies", registry.strategies())):
        print(title)
        for name, entry in table.items():
            module = inspect.getmodule(type(entry))
            _line(name, getattr(module, "__doc__", None) or "", getattr(module, "__file__", None))
    print("ways to run the whole step")
    _line(registry.NAIVE, ONE_BY_ONE, rewriter.__file__)


def _line(name: str, text: str, file: str | None) -> None:
    summary = text.strip().partition("\n")[0]
    print(f"  {name:<14} {summary}\n  {'':<14} {file or 'interactive'}")
