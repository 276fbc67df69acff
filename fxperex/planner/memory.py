"""A plan's peak memory: every site's norm and weighted sum hung into the frame of forward and backward.

The order is the step's own: forward, backward, norms site by site, clip factors, weighted sums. A site that stores
gradients frees its inputs and output gradient early; one that reads them again keeps both until its sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxperex.config import accumulator
from fxperex.frame import Frame
from fxperex.liveness import Instruction, Listing, Peak, peak
from fxperex.planner.plan import Choice
from fxperex.work import inputs_bytes, outputs_bytes


def step_listing(frame: Frame, choices: Sequence[Choice]) -> Listing:
    """Returns the Listing of the whole step under `choices`."""
    live = [c for c in choices if c.site.name in frame.reads]
    norms = [_norm(frame, c) for c in live]
    sums = [_sum(frame, c) for c in live]
    made = frozenset(name for step in sums for name in step.makes)
    return replace(frame.listing, instructions=(*frame.listing.instructions, *norms, *sums), outputs=frame.listing.outputs | made)


def plan_peak(frame: Frame, choices: Sequence[Choice]) -> Peak:
    """Returns the Peak of the step under `choices`."""
    return peak(step_listing(frame, choices))


def _norm(frame: Frame, choice: Choice) -> Instruction:
    inputs, grads = frame.reads[choice.site.name]
    held = {f"{choice.site.name}: stored": choice.cost.held} if choice.cost.held else {}
    return Instruction(f"{choice.site.name}: norm", held, inputs + grads, max(choice.cost.transient - choice.cost.held, 0.0))


def _sum(frame: Frame, choice: Choice) -> Instruction:
    site, cost = choice.site, choice.cost
    made = {f"{site.name}: sum": float(site.size * accumulator(site.dtype).itemsize)}
    if cost.rereads:
        inputs, grads = frame.reads[site.name]
        return Instruction(f"{site.name}: sum", made, inputs + grads, inputs_bytes(site) + outputs_bytes(site))
    return Instruction(f"{site.name}: sum", made, (f"{site.name}: stored",) if cost.held else (), cost.held)


def site_of(instruction: str) -> str:
    """Returns the site that an instruction or a buffer of a step belongs to, '' for forward and backward."""
    name, mark, _ = instruction.rpartition(": ")
    return name if mark else ""
