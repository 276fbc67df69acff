"""`fxperex compare`: every single-strategy plan and `auto`, predicted beside measured."""

from __future__ import annotations

import argparse

import torch

from fxperex.capture.structure import as_arguments
from fxperex.cli._models import Subject, model_options, subject
from fxperex.cli._progress import progress
from fxperex.compiler import BACKENDS
from fxperex.devices import profile, target
from fxperex.devices.calibrate import Timer
from fxperex.devices.profile_files import present
from fxperex.errors import ConfigError
from fxperex.plan.byte_sizes import size
from fxperex.plan.table import aligned
from fxperex.planner.planner import with_frame
from fxperex.registry import ways
from fxperex.rewrite.frame import trace_frames
from fxperex.transform import transform

HELP = "run a model under auto and under every strategy alone; print predicted beside measured"
HEAD = ("strategy", "sites", "step ms", "measured ms", "measured/predicted", "peak")
EXAMPLES = ("fxperex compare torchvision:resnet18 --only auto ghost unfold",)


def options(parser: argparse.ArgumentParser) -> None:
    model_options(parser)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", choices=BACKENDS, default="eager")
    parser.add_argument("--only", nargs="+", default=None, metavar="STRATEGY",
                        help="these strategies instead of all")


def run(options: argparse.Namespace) -> None:
    device = target(options.device)
    present(device)
    names = ["auto", *ways()] if options.only is None else options.only
    unknown = [n for n in names if n != "auto" and n not in ways()]
    if unknown:
        raise ConfigError(f"unknown strategy {unknown[0]!r}; valid: auto, "
                          f"{', '.join(ways())}")
    asked = subject(options, options.device)
    rows = []
    with progress("comparing") as report:
        for i, name in enumerate(names):
            report(i, len(names), name)
            rows.append(_row(asked, name, options.backend, device))
        report(len(names), len(names), "done")
    print("\n".join(aligned(HEAD, rows)))


def _row(asked: Subject, name: str, backend: str, device: torch.device) -> tuple[str, ...]:
    private = transform(asked.model, asked.batch, asked.loss, forward=asked.forward,
                        strategy=name, backend=backend)
    private.compile()
    frames = trace_frames(private.captured, private.analysis)
    plan = with_frame(private.plan, frames.at(private.plan.frame_rows), profile(device))
    assert plan.frame_seconds is not None
    predicted = plan.seconds + plan.frame_seconds
    measured = Timer(device)(lambda: private.step(*as_arguments(asked.batch)), enough=0.2)
    asked.model.zero_grad()
    legal = sum(c.strategy == name for c in plan.choices) if name != "auto" else len(plan.choices)
    return (name, f"{legal} of {len(plan.choices)}", f"{1e3 * predicted:.2f}",
            f"{1e3 * measured:.2f}", f"{measured / predicted:.2f}", size(private.peak))
