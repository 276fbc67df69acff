"""`fxperex explain`: the plan of a model, without its weights and without the device."""

from __future__ import annotations

import argparse

from fxperex.cli._models import plan_options, planned
from fxperex.planner.alternatives import explained
from fxperex.report.draw import draw
from fxperex.report.explain import check_top
from fxperex.report.terminal import show

HELP = ("print the plan of a model: sites, strategies, predicted time and memory, coverage of "
        "every parameter")
EXAMPLES = ("fxperex explain torchvision:resnet50 --input 3x224x224 --top 20",
            "fxperex explain transformers:gpt2 --input 512 --device cuda --memory 40GiB",
            "fxperex explain package.module:factory --json",)


def options(parser: argparse.ArgumentParser) -> None:
    plan_options(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, for "
                                                            "Plan.from_json and transform")
    parser.add_argument("--top", type=int, metavar="N", help="only the N dearest rows")
    parser.add_argument("--draw", metavar="FILE", help="also draw it: .svg, .png, .html or .json")


def run(options: argparse.Namespace) -> None:
    check_top(options.top)
    outlined, frames, rates = planned(options)
    plan, rivals = explained(outlined.plan, frames, rates)
    if options.json:
        print(plan.to_json())
    else:
        show(plan, rivals, options.top)
    if options.draw:
        title = options.model
        draw(options.draw, outlined.capture.main.graph.graph, plan, title)
