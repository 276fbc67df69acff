"""Floors of the step benchmark: operations and bytes COUNTED from the captured graph and its plan,
over a profile's rates.

    python benchmarks/roofline.py [--workloads mlp ...] [--minutes 20] [--write]

Nothing runs: models of `cuda()` lie on the meta device. The ordinary step is the plan's frame
(forward, backward to the sites' outputs) and one ordinary weight gradient a site. The private step
is the same frame and what the plan chose. Rows go to results/cpu/roofline.json as they are done;
`--write` puts the tables of that file, and of results/cpu/step_float32.json, between their markers
in README.md. CPU: the shipped profile, measured at two threads. H200: a data sheet's figures, not
measured.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import roofline_tables
import step_workloads
import torch
from record import Record, Row
from workloads import LOSS

from fxperex.cost_model.sites import convolutions, depthwise, weight_gradient
from fxperex.cost_model.sizes import convolves, grads_bytes, with_all_taps
from fxperex.costs import Cost, Work
from fxperex.devices import Profile, profile
from fxperex.devices.kernel_classes import PRODUCTS
from fxperex.rewrite.frame import trace_frames
from fxperex.sites import Dims, Site
from fxperex.transform import outline

HERE = Path(__file__).parent
FORWARD, WEIGHTS = "forward_and_input_gradients", "weight_gradients"
READS = {"norm", "mv", "fresh"}
SHIPPED = {"cpu": "cpu-x86_64-2t-*.json", "cuda": "cuda-H200-*.json"}


def flops(work: Iterable[Work]) -> float:
    return sum(w.calls * w.amount for w in work if w.kernel in PRODUCTS)


def moved(costs: Iterable[Cost]) -> float:
    """Bytes: traffic, and the amounts of the kernels that only move memory."""
    return sum(c.bytes +
               sum(w.calls * w.amount for w in c.work if w.kernel not in PRODUCTS) for c in costs)


def ordinary(site: Site) -> tuple[Work, ...]:
    """The weight gradients that training without privacy forms at `site`; none where the kind has
    no product.
    """
    return tuple(w for use in site.each if (d := use.dims) is not None
                 for w in ((_convolution(use, d),) if convolves(use) else weight_gradient(use, d)))


def _convolution(site: Site, d: Dims) -> Work:
    """With all taps of the kernel: those that only ever meet padding too, which a plan leaves
    out.
    """
    d = with_all_taps(d, site)
    return depthwise(site, d, "conv_depthwise") if d.G > 1 and d.taps == d.D else convolutions(
        site, d, "conv_weight", d.B, d.G)


def parts(costs: list[Cost], rates: Profile) -> dict[str, float]:
    """Predicted seconds by what takes them."""
    made = {
        "products": [
            Cost(tuple(w for w in c.work if w.kernel in PRODUCTS), launches=0) for c in costs
        ], "traffic": [
            Cost(tuple(w
                       for w in c.work
                       if w.kernel not in PRODUCTS), c.bytes, launches=0)
            for c in costs
        ], "launches": [Cost(launches=c.launches) for c in costs]
    }
    return {name: sum(map(rates.seconds, of)) for name, of in made.items()}


def count(step: step_workloads.Step, device: str, dtype: torch.dtype = torch.float32) -> Row:
    """Returns one workload's row; `device` names the profile, and the plan is made for it."""
    where = torch.device("meta" if device == "cuda" else "cpu")
    with where:
        model = step.make().to(dtype)
    batch = tuple(
        t.to(where, dtype if t.is_floating_point() else t.dtype) for t in step.batch(step.rows))
    rates = Profile.from_json(
        next((HERE.parent / "fxperex" / "profiles").glob(SHIPPED[device])).read_text())
    start = time.process_time()
    made = outline(model, batch, LOSS, device=torch.device(device))
    if made.plan.device not in (rates.device, profile(torch.device(device)).device):
        raise SystemExit(f"the plan was made for {made.plan.device}, the floor for {rates.device}")
    frame = list(trace_frames(made.capture, made.analysis).at(step.rows).costs)
    sites = [c.cost for c in made.plan.choices]
    stored = [
        c for c in made.plan.choices
        if c.cost.held >= grads_bytes(c.site) and c.site.dims is not None
    ]
    counted = {FORWARD: flops(w for c in frame for w in c.work),
               WEIGHTS: flops(w for c in made.plan.choices for w in ordinary(c.site))}
    plain = Cost(tuple(w for c in made.plan.choices for w in ordinary(c.site)), launches=0)
    base, private = parts([*frame, plain], rates), parts([*frame, *sites], rates)
    # Stored gradients are written once, read for the norm, and read for the sum. A measured
    # product's rate has its writes in it.
    kept = sum(grads_bytes(c.site) for c in stored)
    crossing = sum(rates.of(w) for c in stored for w in c.cost.work if w.kernel in READS)
    crossing += 0.0 if rates.source == "measured" else rates.seconds(Cost((), kept, launches=0))
    return {
        "rows": step.rows, "profile": rates.device, "rates": rates.source, "flops": counted,
        "flops_added": flops(w for c in sites for w in c.work) - counted[WEIGHTS],
        "stored_bytes": kept, "stored_traffic_bytes": 3 * kept, "traffic_added_bytes": moved(sites),
        "floor_seconds": base["products"], "ordinary_parts": base, "private_parts": private,
        "ratio_floor": (private["products"] + crossing) / base["products"],
        "ratio_predicted": sum(private.values()) / sum(base.values()),
        "strategies": sorted({c.strategy
                              for c in made.plan.choices
                              }), "planning_cpu_seconds": time.process_time() - start
    }


def write(path: Path, results: Path) -> None:
    """Puts every table of `roofline_tables` between its markers in the file `path`."""
    text = path.read_text()
    for name, table in roofline_tables.tables(results).items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not mark.search(text):
            raise SystemExit(f"{path} has no markers <!-- {name} --> and <!-- end {name} -->")
        text = mark.sub(lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text)  # type: ignore[misc]
    path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", nargs="+")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no new row "
                                                                    "begins; run again to go on")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "cpu" / "roofline.json")
    parser.add_argument("--write", action="store_true", help="rewrite the tables in README.md")
    args = parser.parse_args()
    torch.set_num_threads(2)  # the threads of the shipped profile, and of the step benchmark
    warnings.simplefilter("ignore")
    known = {
        f"{table}:{name}": (step, device, dtype)
        for table, (device, dtype) in roofline_tables.TABLES.items()
        for name, step in getattr(step_workloads, device)().items()
    }
    record = Record(args.output, 60 * args.minutes, {"tables": list(roofline_tables.TABLES)})
    for key in record.missing(
        [k for k in known if args.workloads is None or k.partition(":")[2] in args.workloads]):
        try:
            record.add(key, count(*known[key]))
        # what cannot be captured without its device says so in its row
        except Exception as problem:
            record.add(key, {"did_not_run": f"{type(problem).__name__}: "
                                            f"{str(problem).strip().splitlines()[0][:200]}"})
    if args.write:
        write(HERE / "README.md", args.output.parent)


if __name__ == "__main__":
    main()
