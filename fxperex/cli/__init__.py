"""The command line. Each file here is a command: HELP, `options(parser)`, `run(options)`.

A new command is a new file. Files whose names start with an underscore are no commands.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import metadata

from fxperex.errors import ConfigError, FxperexError


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after a refusal, whose reason is on stderr; 1 if nobody
    reads on what is printed.
    """
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if more and not isinstance(options.run, _Missing):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        options.run(options)
        sys.stdout.flush()
    except FxperexError as e:
        print(f"fxperex: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Python would flush what is left once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def commands() -> list[str]:
    """Returns the names of all commands."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples as they are."""


class _Missing:
    """Stands for a command whose extra is not installed."""

    def __init__(self, error: ConfigError) -> None:
        self._error = error

    def __call__(self, options: argparse.Namespace) -> None:
        raise self._error


def version() -> str:
    """Returns the version that is installed."""
    try:
        return metadata.version("fxperex")
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fxperex", description="Differentially private training of torch models.")
    parser.add_argument("--version", action="version", version=f"fxperex {version()}")
    table = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in commands():
        try:
            command = importlib.import_module(f"fxperex.cli.{name}")
        except ConfigError as e:  # of a package that is not installed
            table.add_parser(name, help=f"({e})").set_defaults(run=_Missing(e))
            continue
        examples = getattr(command, "EXAMPLES", ())
        shown = "examples:\n  " + "\n  ".join(examples) if examples else None
        subparser = table.add_parser(name, help=command.HELP, description=command.HELP,
                                     epilog=shown, formatter_class=_Help)
        command.options(subparser)
        subparser.set_defaults(run=command.run)
    return parser
