"""What a plan is compared with: one strategy wherever it is legal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alternative:
    """Strategy `name`, legal at `legal` of `sites` sites.

    seconds, step_seconds: predicted for the sites alone, and for the step; peak: its bytes.
    """

    name: str
    legal: int
    sites: int
    seconds: float
    step_seconds: float
    peak: float
