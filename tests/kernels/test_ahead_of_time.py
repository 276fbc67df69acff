"""Kernels compile for sm_80 and sm_90 without a GPU, fit in shared memory, and keep their tiles in registers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may use
SPILL = 64  # bytes a thread may keep in local memory: an address or two, not a tile
CONV = {"KZ": 1, "KY": 3, "KX": 3, "CHANNELS_LAST": True, "x_c": 1, "g_c": 1}


def _cases() -> list[tuple[str, str, dict[str, Any], int]]:
    """(kernel, dtype, constants, warps); tiles are those that `tile` gives, blocks the tuner's first choices."""
    import torch

    from fxperex.kernels.gpu.tuning import tile

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    cases: list[tuple[str, str, dict[str, Any], int]] = []
    for dtype, precision in [(torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"), (torch.float16, "ieee")]:
        for capability in ((8, 0), (9, 0)):
            block_p, block_d = tile(dtype, precision, capability)
            made = {"PRECISION": precision, "WIDEN": False, "BLOCK_T": 32, "BLOCK_P": block_p, "BLOCK_D": block_d,
                    "STORE": dtype != torch.float32, "SQUARE": True}
            cases.append(("linear", names[dtype], made | {"a_d": 1, "g_p": 1, "sm": capability[0] * 10}, 8))
            # Positions split over programs (rank 16): float32 parts of a sum, whatever the operands are; squared later.
            parts = made | {"BLOCK_P": 16, "STORE": True, "SQUARE": False, "GRADS": "*fp32", "sm": capability[0] * 10}
            cases.append(("linear", names[dtype], parts | {"a_d": 1, "g_p": 1}, 8))
            if dtype != torch.float16:
                contiguous = CONV | {"CHANNELS_LAST": False, "x_x": 1, "g_x": 1}
                cases.append(("conv", names[dtype], parts | {k: v for k, v in contiguous.items() if k not in ("x_c", "g_c")}, 8))
                cases.append(("conv", names[dtype], made | CONV | {"sm": capability[0] * 10}, 8))
    for sm in (80, 90):
        cases += [("gram", "fp32", {"BLOCK_S": 64, "BLOCK_K": 16, "a_d": 1, "g_p": 1, "sm": sm}, 8),
                  ("depthwise", "bf16", CONV | {"KY": 7, "KX": 7, "BLOCK_T": 16, "BLOCK_P": 64, "sm": sm}, 4),
                  ("gram", "bf16", {"BLOCK_S": 64, "BLOCK_K": 16, "a_d": 1, "g_p": 1, "sm": sm}, 8),
                  ("depthwise", "fp32", {"KZ": 1, "KY": 3, "KX": 3, "BLOCK_T": 256, "BLOCK_P": 4, "x_x": 1, "sm": sm}, 4),
                  ("affine", "fp32", {"PER_POSITION": False, "BLOCK_C": 4, "BLOCK_N": 256, "x_n": 1, "g_n": 1, "sm": sm}, 4),
                  ("weighted", "fp32", {"BLOCK": 1024, "sm": sm}, 4),
                  ("affine", "bf16", {"PER_POSITION": True, "BLOCK_C": 64, "BLOCK_N": 16, "x_c": 1, "sm": sm}, 4),
                  ("embedding", "fp32", {"BLOCK_P": 128, "g_p": 1, "sm": sm}, 4),
                  ("weighted", "bf16", {"BLOCK": 1024, "sm": sm}, 4),
                  ("chacha", "fp32", {"BLOCK": 128, "ROUNDS": 10, "sm": sm}, 4)]
    return cases


POINTERS = {"squares": "*fp64", "sums": "*fp64", "ids": "*i64", "order": "*i64", "factors": "*fp64", "valid": "*i8",
            "scale": "*fp32", "shift": "*fp32", "mean": "*fp32", "rstd": "*fp32", "out": "*fp32", "words": "*i32",
            "stream": "*i64"}
OPERANDS = {"a", "g", "x", "grads"}


def _compile(name: str, dtype: str, constants: dict[str, Any], warps: int) -> Any:
    from importlib import import_module

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(f"fxperex.kernels.gpu.{name}"), f"{name}_kernel")
    constants = dict(constants)
    target, held = GPUTarget("cuda", constants.pop("sm"), 32), constants.pop("GRADS", None)
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    signature = {n: "constexpr" if n in constants else "*" + dtype if n in OPERANDS else POINTERS.get(n, "i32")
                 for n in kernel.arg_names}
    if held:
        signature["grads"] = held
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*")}
    places = {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    return triton.compile(ASTSource(kernel, signature, places, aligned), target=target,
                          options={"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True})


def _resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers and local bytes a thread, read from the machine code."""
    (folder / "kernel.cubin").write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    assert tool.exists(), "Triton's own cuobjdump reads the machine code; without it spills would go unseen"
    text = subprocess.run([tool, "--dump-resource-usage", folder / "kernel.cubin"], capture_output=True, text=True,
                          check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


@pytest.mark.parametrize(("name", "dtype", "constants", "warps"), _cases(), ids=lambda v: "" if isinstance(v, dict) else str(v))
def test_compiles_and_fits(name: str, dtype: str, constants: dict[str, Any], warps: int, tmp_path: Path) -> None:
    compiled = _compile(name, dtype, constants, warps)
    assert compiled.metadata.shared <= SHARED[constants["sm"]]
    used = _resources(compiled.asm["cubin"], tmp_path)
    assert used["REG"] <= 255 and used["STACK"] + used["LOCAL"] <= SPILL, used
    multiplies = (name in {"linear", "conv", "gram"} and constants.get("PRECISION") != "ieee") or dtype in {"bf16", "fp16"}
    if multiplies and name in {"linear", "conv", "gram"}:
        assert re.search(r"wgmma|mma\.sync", compiled.asm["ptx"]), "products must run on tensor cores"


@pytest.mark.parametrize("name", ["linear", "conv", "gram"])
def test_what_was_tuned_is_kept_on_disk(name: str) -> None:
    from importlib import import_module

    tuned = getattr(import_module(f"fxperex.kernels.gpu.{name}"), f"{name}_tuned")
    assert tuned.cache_results and len(tuned.configs) > 1 and {"T", "D", "P"} <= set(tuned.keys)
