"""The floors of the step benchmark: operations counted twice, by the library and by torch's own
counter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a file of `benchmarks/`."""
    import importlib

    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.mark.parametrize("name", ["mlp", "toy_r2_l4_k5_32px", "resnet18_32px", "encoder"])
def test_an_ordinary_step_is_counted_as_torch_counts_it(bench: Callable[[str], Any],
                                                        name: str) -> None:
    step = bench("step_workloads").cpu()[name]
    row = bench("roofline").count(step, "cpu")
    with torch.device("meta"):
        model = step.make()
    x, y = (t.to("meta") for t in step.batch(step.rows))
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(model(x), y).backward()
    assert sum(row["flops"].values()) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert row["flops_added"] > -0.3 * row["flops"]["weight_gradients"]


def test_bytes_of_tokens_are_not_operations(bench: Callable[[str], Any]) -> None:
    workloads = bench("step_workloads")
    step = workloads.Step(
        lambda: nn.Sequential(nn.Embedding(50, 32), nn.Flatten(), nn.Linear(8 * 32, 2)),
        workloads.tokens(8, 50, each=False), 4, 1.0)
    row = bench("roofline").count(step, "cpu")
    # The linear layer's forward, input and weight gradient: a look-up and its scattered sum
    # multiply nothing.
    assert sum(row["flops"].values()) == 3 * 2 * 4 * 8 * 32 * 2


def test_tables_go_between_their_markers(bench: Callable[[str], Any], tmp_path: Path) -> None:
    row = {
        "rows": 2, "flops": {"a": 2e9, "b": 1e9}, "flops_added": 0.0, "stored_bytes": 1e6,
        "stored_traffic_bytes": 3e6, "floor_seconds": 0.002, "ratio_floor": 1.1,
        "ratio_predicted": 1.2,
        "private_parts": {"products": 0.0025, "traffic": 0.0005, "launches": 0.0}
    }
    measured = {"ordinary": {"seconds": 0.004}, "auto": {"seconds": 0.005, "ratio": 1.25}}
    (tmp_path / "roofline.json").write_text(
        json.dumps({"rows": {"cpu:net": row, "cuda:net": {"did_not_run": "no"}}}))
    (tmp_path / "step_float32.json").write_text(
        json.dumps({"rows": {"net": {"candidates": measured}}}))
    page = tmp_path / "README.md"
    page.write_text("".join(f"<!-- {name} -->\nold\n<!-- end {name} -->\n"
                            for name in ("roofline cpu", "roofline cuda", "roofline cuda "
                                         "bfloat16", "over the floor")) + "tail\n")
    bench("roofline").write(page, tmp_path)
    text = page.read_text()
    assert "| net | 2.00 | 2.50 | 1.25 | 40 % | 10 % | 10 % | 0 % | 40 % |" in text
    assert "| net | no |" in text and "old" not in text and text.endswith("tail\n")
    with pytest.raises(SystemExit, match="no markers"):
        page.write_text("")
        bench("roofline").write(page, tmp_path)
