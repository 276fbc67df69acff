"""The command line. Each file here is a command: HELP, `options(parser)`, `run(options)`.

A new command is a new file. Files whose names start with an underscore are no commands.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from fxperex.errors import FxperexError


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after a refusal, whose reason is on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except FxperexError as e:
        print(f"fxperex: {e}", file=sys.stderr)
        return 2
    return 0


def commands() -> list[str]:
    """Returns the names of all commands."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples as they are."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fxperex", description="Differentially private training of torch models.")
    table = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in commands():
        command = importlib.import_module(f"fxperex.cli.{name}")
        examples = getattr(command, "EXAMPLES", ())
        shown = "examples:\n  " + "\n  ".join(examples) if examples else None
        subparser = table.add_parser(name, help=command.HELP, description=command.HELP,
                                     epilog=shown, formatter_class=_Help)
        command.options(subparser)
        subparser.set_defaults(run=command.run)
    return parser
