"""`fxperex train`: a small network trained privately, and the same one without privacy."""

from __future__ import annotations

import argparse

from fxperex.compiler import BACKENDS
from fxperex.demo import train

HELP = "train a small network privately, and the same one without privacy"
EXAMPLES = ("fxperex train digits --epsilon 3",)


def options(parser: argparse.ArgumentParser) -> None:
    default = train.Job()
    parser.add_argument("job", nargs="?", choices=["digits"], default="digits")
    parser.add_argument("--data", help="mnist:PATH or cifar10:PATH instead of the digits")
    for name in ("epsilon", "delta", "epochs", "clip", "lr"):
        parser.add_argument(f"--{name}", type=float, default=getattr(default, name),
                            help="default %(default)s")
    parser.add_argument("--batch", type=int, default=default.batch,
                        help="expected batch, default %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs, averaged")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the first run")
    parser.add_argument("--strategy", default=default.strategy)
    parser.add_argument("--backend", choices=BACKENDS, default=default.backend)
    parser.add_argument("--physical-batch", type=int, help="rows of one compiled step")


def run(options: argparse.Namespace) -> None:
    settings = {k: v for k, v in vars(options).items() if k not in ("job", "run", "seeds")}
    train.main(train.Job(**settings | {"data": options.data or options.job}), options.seeds)
