"""`fxperex explain`: the plan of a model, without its weights and without the device."""

from __future__ import annotations

import argparse

from fxperex.cli._models import plan_options, planned
from fxperex.plan.plan import Plan
from fxperex.planner.alternatives import explained
from fxperex.planner.wire import Spread, Wire, bandwidth, spread
from fxperex.report.draw import draw
from fxperex.report.explain import check_top
from fxperex.report.terminal import show
from fxperex.rewrite.rewriter import parameter_order
from fxperex.transform import Outline

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
    parser.add_argument("--ranks", type=int, help="also say what a step takes on so many devices")
    parser.add_argument("--link", default="45GB/s",
                        help="bandwidth of each one's link, each way; default %(default)s")
    parser.add_argument("--expected-batch", type=float,
                        help="mean rows of a logical step; default one physical batch a rank")
    parser.add_argument("--draw", metavar="FILE", help="also draw it: .svg, .png, .html or .json")


def run(options: argparse.Namespace) -> None:
    check_top(options.top)
    wire = None if options.ranks is None else Wire(options.ranks, bandwidth(options.link))
    outlined, frames, rates = planned(options)
    plan, rivals = explained(outlined.plan, frames, rates)
    if options.json:
        print(plan.to_json())
    else:
        show(plan, rivals, options.top)
    if wire is not None and not options.json:
        print(_spread(outlined, plan, wire, options.expected_batch))
    if options.draw:
        title = options.model
        draw(options.draw, outlined.capture.main.graph.graph, plan, title)


def _spread(outlined: Outline, plan: Plan, wire: Wire, expected: float | None) -> Spread:
    """The plan's step on the ranks of `wire`."""
    captured = outlined.capture
    values = {key: node.meta["val"] for (_, key), node in zip(
        captured.inputs.values(), captured.main.graph.graph.nodes, strict=False)}
    trained = [values[n] for n in parameter_order(captured, outlined.analysis)]
    seconds = plan.seconds + (plan.frame_seconds or 0.0)
    return spread(seconds, plan.rows, sum(p.numel() for p in trained),
                  sum(p.nbytes for p in trained), wire, expected)
