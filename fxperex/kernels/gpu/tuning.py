"""Tile sizes by rule, and configurations that are tried once per shape; Triton keeps the fastest on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton

from fxperex.kernels.device import interpreting

# Contraction of a product and a sum into one rounding is welcome; said, because Triton's default is about to change.
OPTIONS = {"enable_fp_fusion": True}


def tuned(key: list[str], blocks: tuple[int, ...], block: str = "BLOCK_T") -> Callable[[Any], Any]:
    """Decorator: autotunes steps along `block`, warps and pipeline stages by the arguments `key`.

    Tile sizes along the result are no part of it: they fix how many partial sums a kernel writes.
    """
    grid = [triton.Config({block: size}, num_warps=warps, num_stages=stages)
            for size in blocks for warps in (4, 8) for stages in (2, 3, 4)]
    # The interpreter has no clock to tune by.
    return triton.autotune(grid[:1] if interpreting() else grid, key=key, cache_results=not interpreting(),
                           prune_configs_by={"early_config_prune": _fitting})


def _fitting(configs: list[Any], arguments: dict[str, Any], **constants: Any) -> list[Any]:
    """Large tiles need eight warps: with four, their accumulators alone spill."""
    given = arguments | constants
    large = given.get("BLOCK_D", 0) * given.get("BLOCK_P", 0) > 64 * 64
    return [c for c in configs if c.num_warps == 8 or not large] or configs


def tile(dtype: torch.dtype, precision: str, capability: tuple[int, int]) -> tuple[int, int]:
    """Returns the largest (BLOCK_P, BLOCK_D) whose accumulators and operands stay in registers.

    Found by compiling ahead of time for both generations; float32 products without TF32 run on the ordinary
    units, which hold far less.
    """
    if dtype == torch.float32 and precision == "ieee":
        return 64, 64
    return (128, 128) if capability >= (9, 0) or dtype != torch.float32 else (128, 64)


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
