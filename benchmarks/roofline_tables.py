"""Markdown of what roofline.py counted, and of what bench_step.py measured over it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pages import table
from record import Row

# name -> device and dtype of a roofline
TABLES = {
    "cpu": ("cpu", torch.float32), "cuda": ("cuda", torch.float32),
    "cuda bfloat16": ("cuda", torch.bfloat16)
}


def tables(results: Path) -> dict[str, str]:
    """Returns {marker: table} from roofline.json and step_float32.json in the folder `results`."""
    floors = json.loads((results / "roofline.json").read_text())
    measured = json.loads((results / "step_float32.json").read_text())
    rows = {
        device: {
            k.partition(":")[2]: r
            for k, r in floors["rows"].items()
            if k.startswith(device + ":")
        }
        for device in TABLES
    }
    units = {name: (1e-9, "Gflop") if name == "cpu" else (1e-12, "Tflop") for name in TABLES}
    made = {f"roofline {name}": _floors(rows[name], *units[name]) for name in TABLES}
    return made | {"over the floor": _over(rows["cpu"], measured)}


def _floors(rows: dict[str, Row], unit: float, name: str) -> str:
    head = ["workload", "rows", "forward and input gradients, "
                                f"{name}", f"weight gradients, {name}", f"plan adds, {name}",
            "per-example gradients "
            "stored, MB", "their traffic, MB", "floor, ms", "ratio floor", "ratio predicted"]
    made = []
    for key, r in rows.items():
        if "did_not_run" in r:
            made.append([key, r["did_not_run"], *[""] * (len(head) - 2)])
            continue
        made.append([
            key,
            str(r["rows"]), *(f"{unit * v:.3g}" for v in (*r["flops"].values(), r["flops_added"])),
            *(f"{1e-6 * r[k]:.3g}" for k in ("stored_bytes", "stored_traffic_bytes")),
            f"{1e3 * r['floor_seconds']:.3g}", f"{r['ratio_floor']:.2f}",
            f"{r['ratio_predicted']:.2f}"
        ])
    return table(head, made)


def _over(floors: dict[str, Row], measured: Row) -> str:
    """The measured private step in shares: floor, products that the plan adds, traffic, launches,
    and what no model explains.
    """
    head = ["workload", "ordinary over its "
                        "floor", "private over that "
                                 "floor", "private / ordinary", "floor", "added products",
            "traffic", "launches", "not explained"]
    made = []
    for key, row in measured["rows"].items():
        auto, r = row["candidates"].get("auto", {}), floors.get(key, {})
        if "seconds" not in auto or "floor_seconds" not in r:
            continue
        floor, took, parts = r["floor_seconds"], auto["seconds"], r["private_parts"]
        known = [floor, parts["products"] - floor, parts["traffic"], parts["launches"]]
        base = row["candidates"]["ordinary"]["seconds"]
        made.append([key, f"{base / floor:.2f}", f"{took / floor:.2f}", f"{auto['ratio']:.2f}",
                     *(f"{100 * s / took:.0f} %" for s in (*known, took - sum(known)))])
    return table(head, made)
