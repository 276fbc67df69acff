"""The card and its rates: what `nvidia-smi` says, bandwidth of a copy, one large product in each
precision."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch

from gpu_stages.clock import fastest
from gpu_stages.rows import AbsentError, Rows
from gpu_stages.setting import Setting, precision

QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem,ecc.mode.current"


def run(setting: Setting, part: str, rows: Rows) -> None:
    rows.run("nvidia-smi", smi)
    rows.run("copy", copy, setting)
    for dtype, kind in (
        (torch.float32, "float32"),
        (torch.float32, "tf32"),
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "bfloat16"),
        (torch.float64, "float32"),
    ):
        name = kind if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        rows.run(f"product {name}", product, setting, dtype, kind)


def smi() -> dict[str, Any]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise AbsentError("nvidia-smi")
    lines = subprocess.run(
        [tool, f"--query-gpu={QUERY}", "--format=csv"], capture_output=True, text=True, timeout=20
    )
    return {"cards": lines.stdout.splitlines()}


def copy(setting: Setting) -> dict[str, Any]:
    source = torch.ones(2**20 if setting.tiny else 2**29, device=setting.device)
    target = torch.empty_like(source)
    spent = fastest(lambda: target.copy_(source), setting)
    return {"bytes": 2 * source.nbytes, "GB_per_s": 2e-9 * source.nbytes / spent}


def product(setting: Setting, dtype: torch.dtype, kind: str) -> dict[str, Any]:
    size = 256 if setting.tiny else 8192
    a, g = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    with precision(kind):
        spent = fastest(lambda: a @ g, setting, 3)
    return {"size": size, "TFLOP_per_s": 2e-12 * size**3 / spent}
