"""`fxperex draw`: the captured graph and the step graph of a model as one picture."""

from __future__ import annotations

import argparse

from fxperex.cli._models import plan_options, planned
from fxperex.planner.planner import with_frame
from fxperex.report.draw import draw

HELP = "draw the captured graph and the step graph that the plan makes of it"
EXAMPLES = ("fxperex draw timm:convnext_tiny --input 3x224x224 --output plan.html",
            "fxperex draw transformers:gpt2 --output gpt2.json",)


def options(parser: argparse.ArgumentParser) -> None:
    plan_options(parser)
    parser.add_argument("--output", default="plan.svg",
                        help="a file that ends in .svg, .png, .html or .json; default %(default)s")


def run(options: argparse.Namespace) -> None:
    outlined, frames, rates = planned(options)
    plan = with_frame(outlined.plan, frames.at(outlined.plan.frame_rows), rates)
    title = options.model
    print(draw(options.output, outlined.capture.main.graph.graph, plan, title))
