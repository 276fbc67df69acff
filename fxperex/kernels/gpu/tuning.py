"""Tile sizes by rule, and a few configurations that are tried once per shape; Triton keeps the
fastest on disk.

Trying one costs its compilation and a tenth of a second. So no more than `TRIED` are tried: those
that fit the tile, the positions there are, and the memory that a block of this GPU may share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from fxperex.kernels.device import interpreting, power

# Contraction of a product and a sum into one rounding is welcome; said, because Triton's default is
# about to change.
OPTIONS = {"enable_fp_fusion": True}
TRIED = 4  # configurations tried per kernel and shape
# Steps along the positions and stages of the pipeline, the likely best in front. Steps of 16 and 32
# are for products that the ordinary units form: these come apart into one instruction for every
# number, and long ones spill.
STEPS = ((64, 3), (32, 4), (32, 3), (64, 4), (16, 3), (128, 2), (64, 2), (32, 2), (16, 2))
SHORT = ((16, 3), (32, 2), (32, 3), (16, 2))
SHARED = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227,
          (10, 3): 227}  # KiB that a block may use
SMALLEST = 99  # KiB of all others
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)


def tuned(key: list[str], steps: tuple[tuple[int, int], ...] = STEPS,
          block: str = "BLOCK_T") -> Callable[[Any], Any]:
    """Decorator: autotunes steps along `block`, warps and pipeline stages by the arguments `key`.

    Tile sizes along the result are no part of it: they fix how many partial sums a kernel writes.
    """
    grid = [
        triton.Config({block: size}, num_warps=warps, num_stages=stages)
        for size, stages in steps
        for warps in (4, 8)
    ]
    # The interpreter has no clock to tune by.
    return triton.autotune(grid[:1] if interpreting() else grid, key=key,
                           cache_results=not interpreting(),
                           prune_configs_by={"early_config_prune": candidates})


def candidates(configs: list[Any], arguments: dict[str, Any], **constants: Any) -> list[Any]:
    """Returns the configurations, at most `TRIED`, worth trying for these arguments of a kernel;
    the smallest if none fits.
    """
    values = arguments | constants
    operand = next(v for v in values.values() if isinstance(v, Tensor))
    gram = "BLOCK_S" in values
    rows, columns = (values["BLOCK_S"],) * 2 if gram else (values["BLOCK_P"], values["BLOCK_D"])
    length = max(values["D"], values["P"]) if gram else values["chunk"]
    cores = not gram and (values["PRECISION"] != "ieee" or operand.dtype != torch.float32)
    # With four warps the accumulators of a large tile alone spill; float64, or operands beside
    # them, take twice the registers.
    warps = 8 if rows * columns * (4 if cores else 8) > 2**14 else 4
    # A convolution gathers: addresses and masks of a long step spill, unless channels lie side by
    # side.
    longest = 32 if not cores or values.get("CHANNELS_LAST") is False else 128
    shortest = 32 if cores else 16
    line = (rows + columns) * operand.element_size()
    # Positions in flight: what shared memory holds. Pointers into 32-bit operands of odd strides
    # spill if more than 128 are.
    flight = shared(operand.device) // line
    flight = min(flight, 128) if cores and operand.element_size() == 4 else flight
    fitting = [c for c in configs if c.num_warps == warps and c.num_stages * _step(c) <= flight
               and shortest <= _step(c) <= longest]
    # Steps longer than what there is to step over multiply zeros; a loop of one step has nothing to
    # fetch ahead.
    useful = [c for c in fitting if _step(c) <= power(length, shortest, 2**30)]
    if length <= shortest:
        useful = sorted(useful, key=lambda c: c.num_stages)[:1]
    return useful[:TRIED] or configs[-1:]


def _step(config: Any) -> int:
    return int(next(iter(config.kwargs.values())))


def tile(x: Tensor, precision: str, columns: bool = False) -> tuple[int, int]:
    """Returns the largest (BLOCK_P, BLOCK_D) whose accumulators and operands stay in registers;
    `columns`: of a convolution.

    Known from compiling ahead of time for every generation; float32 products without TF32 run on
    the ordinary units, which hold far less.
    """
    if x.dtype == torch.float32 and precision == "ieee":
        return 64, 64
    if x.dtype != torch.float32:
        return 128, 128
    return (128, 128) if capability(x.device) >= (9, 0) and not (columns and OLD) else (128, 64)


def square(x: Tensor) -> int:
    """Returns the largest side of a tile of float64 products."""
    # Triton 3.6 would give those of 64 to units of sm_100 that have no float64, and fails.
    return 32 if OLD and capability(x.device)[0] == 10 else 64


def shared(device: torch.device) -> int:
    """Returns the bytes that one block may share, a little of them left for reductions."""
    return SHARED.get(capability(device), SMALLEST) * 1024 - 2048


def alike(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in one dtype, the wider: a product takes no two."""
    dtype = torch.promote_types(a.dtype, g.dtype)
    return a.to(dtype), g.to(dtype)


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
