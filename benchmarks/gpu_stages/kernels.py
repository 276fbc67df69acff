"""Every kernel of the library against float64 (`kernel_cases.py`), and ChaCha against the RFC."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxperex import kernels
from fxperex.kernels.chacha import reference
from fxperex.testing import error
from gpu_stages.kernel_cases import DTYPES, FAMILIES
from gpu_stages.rows import BROKEN, AbsentError, Rows
from gpu_stages.setting import Setting

TESTS = Path(__file__).parents[2] / "tests"
ALL, MEMCHECK, CHACHA = "all", "memcheck", "chacha"


def run(setting: Setting, part: str, rows: Rows) -> None:
    sys.path[:0] = [str(TESTS), str(TESTS / "kernels")]
    _untuned()
    if part == MEMCHECK:
        rows.run(MEMCHECK, memcheck, setting, rows.path)
    if part in (CHACHA, ALL):
        rows.run(CHACHA, chacha, setting)
    every = [(family, dtype) for family in FAMILIES for dtype in DTYPES]
    for family, dtype in every:
        if part == f"{family}.{dtype}" or (part == ALL and dtype != "float16"):
            for seed in (0,) if setting.tiny else (0, 1):
                name = f"{family} {dtype} seed {seed}"
                keep = partial(rows.update, name)
                rows.run(name, compared, family, dtype, seed, setting, keep)


def _untuned() -> None:
    """One configuration of each kernel: what is asked here is whether it is right."""
    if torch.cuda.is_available() and kernels.unavailable(torch.device("cuda")) is None:
        for name in ("linear", "conv", "gram"):
            tuned = getattr(import_module(f"fxperex.kernels.gpu.{name}"), f"{name}_tuned")
            tuned.configs = tuned.configs[:1]


def compared(family: str, dtype: str, seed: int, setting: Setting,
             keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Returns the relative errors of every case; what is above its limit, or raises, is wrong.

    `keep` takes what is known after every case: the first launch of a kernel compiles it.
    """
    torch.manual_seed(seed)
    errors: dict[str, float] = {}
    wrong: list[str] = []
    for name, outcome in FAMILIES[family](dtype, setting):
        try:
            values = outcome()
        except Exception as problem:  # that it does not compile is noted; the others go on
            if any(sign in str(problem) for sign in BROKEN):
                raise
            wrong.append(f"{name}: {type(problem).__name__}: {str(problem)[:200]}")
            continue
        for i, (value, truth, limit) in enumerate(values):
            errors[f"{name} [{i}]"] = size = error(value, truth) if value.numel() else 0.0
            if not size <= limit:
                wrong.append(f"{name} [{i}]: off by {size:.1e}, at most {limit:.1e}")
        keep({"errors": errors, "wrong": wrong})
    return {"cases": len(errors), "largest": max(errors.values(), default=0.0), "errors": errors,
            "wrong": wrong}


def chacha(setting: Setting) -> dict[str, Any]:
    """The key stream, held to the RFC's vectors and, over many blocks, to the reference."""
    wrong = []
    for key, nonce, counter, block in import_module("rfc8439").VECTORS:
        words = _words(key + bytes.fromhex(nonce)).to(setting.device)
        stream = kernels.chacha20(words, 8, counter).cpu()
        if bytes(stream.view(torch.uint8).tolist()).hex() != block:
            wrong.append(f"block {counter} of nonce {nonce}")
    for count in (1, 15, 1025) if setting.tiny else (1, 15, 1025, 1_000_003):
        words = _words(bytes(range(44)))
        stream = kernels.chacha20(words.to(setting.device), count, 7).cpu()
        if not torch.equal(stream, reference(words, count, 7)):
            wrong.append(f"{count} words")
    return {"wrong": wrong}


def _words(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.int32)


def memcheck(setting: Setting, path: Path) -> dict[str, Any]:
    """The smallest cases of every kernel under NVIDIA's memory checker, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise AbsentError("compute-sanitizer")
    script = Path(__file__).parents[1] / "gpu_run.py"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, str(script),
               "--stage", "kernels", "--part", ALL, "--tiny", "--device", setting.name,
               "--cache", str(setting.cache), "--rows", str(path.with_suffix(".small"))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return {"wrong": [] if ended.returncode == 0 else ended.stdout.splitlines()[-30:]}
