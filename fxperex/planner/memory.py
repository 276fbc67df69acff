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
from fxperex.work import inputs_bytes, outputs_bytes, sum_scratch


def step_listing(frame: Frame, choices: Sequence[Choice]) -> Listing:
    """Returns the Listing of the whole step under `choices`."""
    live = [c for c in choices if c.site.name in frame.reads]
    norms = [_norm(frame, c) for c in live]
    sums = [step for c in live for step in _sum(frame, c)]
    made = frozenset(name for step in sums[1::2] for name in step.makes)
    return replace(frame.listing, instructions=(*frame.listing.instructions, *norms, *sums), outputs=frame.listing.outputs | made)


def plan_peak(frame: Frame, choices: Sequence[Choice]) -> Peak:
    """Returns the Peak of the step under `choices`."""
    return peak(step_listing(frame, choices))


def _norm(frame: Frame, choice: Choice) -> Instruction:
    inputs, grads = frame.reads[choice.site.name]
    held = {f"{choice.site.name}: stored": choice.cost.held} if choice.cost.held else {}
    return Instruction(f"{choice.site.name}: norm", held, inputs + grads, max(choice.cost.transient - choice.cost.held, 0.0))


def _sum(frame: Frame, choice: Choice) -> tuple[Instruction, Instruction]:
    """Copies with the rows scaled or cleared, then the sum over them."""
    site, cost = choice.site, choice.cost
    inputs, grads = frame.reads[site.name]
    reads = inputs + grads if cost.rereads else (f"{site.name}: stored",) if cost.held else ()
    moved = inputs_bytes(site) + outputs_bytes(site) if cost.rereads else cost.held
    scaled, made = f"{site.name}: scaled", float(site.size * accumulator(site.dtype).itemsize)
    return (Instruction(scaled, {scaled: moved}, reads),
            Instruction(f"{site.name}: sum", {f"{site.name}: sum": made}, (scaled,), sum_scratch(site) if cost.rereads else 0.0))


def site_of(instruction: str) -> str:
    """Returns the site that an instruction or a buffer of a step belongs to, '' for forward and backward."""
    name, mark, _ = instruction.rpartition(": ")
    return name if mark else ""
