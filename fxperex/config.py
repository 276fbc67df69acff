"""Constants that bound the arithmetic, and the folder for what is remembered, in one place."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# The sensitivity claim: |clipped gradient| <= C (1 + SLACK) for every example.
SLACK = 2.0**-20

# The shortest and the longest gradient whose squares float32 holds. A shorter one may read as zero,
# so no rule may take its norm for less than SHORTEST; a longer one is dropped as one that is not
# finite, in every dtype.
SHORTEST, LONGEST = 1e-10, 2.0**64

# Sums of clipped gradients are never formed in these.
LOW_PRECISION = (torch.bfloat16, torch.float16)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which clipped sums of `dtype` operands are formed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cache_folder() -> Path:
    """Returns the user's cache folder: $FXPEREX_CACHE, else ~/.cache/fxperex."""
    return Path(os.environ.get("FXPEREX_CACHE", Path.home() / ".cache" / "fxperex"))
