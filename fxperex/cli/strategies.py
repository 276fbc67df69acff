"""`fxperex strategies`: the layer kinds and strategies, with the files they are in."""

from __future__ import annotations

import argparse
import inspect

from fxperex import registry

HELP = "list the layer kinds and strategies, and where they are"


def options(parser: argparse.ArgumentParser) -> None:
    pass


def run(_: argparse.Namespace) -> None:
    for title, table in (("layer kinds", registry.kinds()), ("strategies", registry.strategies())):
        print(title)
        for name, entry in table.items():
            module = inspect.getmodule(type(entry))
            summary = (getattr(module, "__doc__", None) or "").strip().partition("\n")[0]
            print(f"  {name:<14} {summary}\n  {'':<14} "
                  f"{getattr(module, '__file__', None) or 'interactive'}")
