"""Constants that bound the arithmetic, in one place."""

from __future__ import annotations

import torch

# The sensitivity claim: |clipped gradient| <= C (1 + SLACK) for every example.
SLACK = 2.0**-20

# The shortest and the longest gradient whose squares float32 holds. A shorter one may read as zero, so no rule may take
# its norm for less than SHORTEST; a longer one is dropped as one that is not finite, in every dtype.
SHORTEST, LONGEST = 1e-10, 2.0**64

# Sums of clipped gradients are never formed in these.
LOW_PRECISION = (torch.bfloat16, torch.float16)

# Rounding of one float32 weight-gradient product, in units of u * sum_t |a_t||g_t| (blocked sums).
ROUNDING = 4.0


def gamma(dtype: torch.dtype) -> float:
    """Returns gamma of the certified norm bound `sqrt(n^2 + gamma S^2)`, `S = sum_t |a_t||g_t|`.

    The weighted sum is rounded by at most `c u S`; clipping by the bound keeps the emitted gradient
    within `C (1 + SLACK)` iff `n + c u S <= (1 + SLACK) sqrt(n^2 + gamma S^2)` for all S, which holds
    for `gamma >= max((c u)^2 / (2 SLACK), (c u)^2)` (square both sides; the worst S is where the
    left side is tangent).
    """
    unit = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps / 2
    return (ROUNDING * unit) ** 2 / (2 * SLACK)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which clipped sums of `dtype` operands are formed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
