"""A plan's peak memory: every site's norm and weighted sum hung into the frame of forward and backward.

The order is the step's own (`passes.schedule`): forward, backward, clip factors, weighted sums; norms behind the backward or,
where that costs no memory, as soon as their output gradient exists (`liveness.raised`). A site that stores gradients then
frees its inputs and output gradient early; one that reads them again keeps both until its sum. Small sites come behind the
others, and what they store is copied side by side: behind all norms, or as soon as all of theirs are there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fxperex.config import accumulator
from fxperex.frame import Frame
from fxperex.liveness import Instruction, Listing, Peak, peak, raised
from fxperex.planner.plan import Choice
from fxperex.repeat import BACKWARD, FORWARD, SUMS, Program
from fxperex.strategies.stored import small
from fxperex.work import inputs_bytes, outputs_bytes, sum_scratch, summing_bytes

BESIDE = "small sites"


def step_listing(frame: Frame, choices: Sequence[Choice], early: Collection[str]) -> Listing:
    """Returns the Listing of the whole step under `choices`, with the norms of the sites `early` inside the backward."""
    live = [c for c in choices if c.site.name in frame.reads]
    placed = sorted((frame.ready[c.site.name], i) for i, c in enumerate(live) if c.site.name in early)
    inside = [(place, _norm(frame, live[i])) for place, i in placed]
    norms = [_norm(frame, c) for c in sorted(live, key=beside) if c.site.name not in early]
    together = Instruction(BESIDE, {BESIDE: beside_bytes(live)}, tuple(f"{c.site.name}: stored" for c in live if beside(c)))
    last = max((at for at, (_, i) in enumerate(placed) if beside(live[i])), default=None)
    if BESIDE in early and last is not None and all(c.site.name in early for c in live if beside(c)):
        inside.insert(last + 1, (inside[last][0], together))
    else:
        norms.append(together)
    steps = _merged(list(frame.listing.instructions), inside)
    sums = [step for c in live for step in _sum(frame, c)]
    made = frozenset(name for step in sums[1::2] for name in step.makes)
    return replace(frame.listing, instructions=(*steps, *norms, *sums), outputs=frame.listing.outputs | made)


def plan_peak(frame: Frame, choices: Sequence[Choice], recompute: Collection[str] = ()) -> Peak:
    """Returns the Peak of the step under `choices`, with the forward instructions `recompute` repeated instead of kept."""
    if recompute:
        return peak(program(frame, choices).repeating(recompute)[0])
    sites, first = movable(frame, choices)

    def trial(some: list[str]) -> tuple[float, str]:
        found = peak(step_listing(frame, choices, some))
        return found.bytes, BESIDE if found.at == BESIDE else site_of(found.at)

    return peak(step_listing(frame, choices, raised(sites, first, trial)[0]))


def movable(frame: Frame, choices: Sequence[Choice]) -> tuple[list[str], set[str]]:
    """The sites in the order of their norms behind the backward, then what small ones store, side by side; and those that free
    what they read with their norm."""
    live = sorted((c for c in choices if c.site.name in frame.reads), key=beside)
    small = [BESIDE] if any(map(beside, live)) else []
    return [c.site.name for c in live] + small, {c.site.name for c in live if not c.cost.rereads}


def program(frame: Frame, choices: Sequence[Choice]) -> Program:
    """Returns the step under `choices` as a Program whose forward instructions may be repeated.

    All norms are inside the backward: there they read what it recomputes anyway, and need not have it made once more.
    """
    made = step_listing(frame, choices, [c.site.name for c in choices] + [BESIDE])
    # Views have no memory of their own; behind the forward they are taken where they are read.
    views = {s.name for s in frame.listing.instructions[frame.forward:] if not s.makes}
    steps = tuple(s for s in made.instructions if s.name not in views)
    sums = 2 * sum(c.site.name in frame.reads for c in choices)
    phases = [FORWARD if i < frame.forward else BACKWARD if i < len(steps) - sums else SUMS for i in range(len(steps))]
    return Program(replace(made, instructions=steps), phases)


def _merged(steps: list[Instruction], placed: list[tuple[int, Instruction]]) -> list[Instruction]:
    """`steps` with each of `placed`, in ascending order of place, in front of the step at its place."""
    made: list[Instruction] = []
    at = 0
    for place, step in placed:
        made += [*steps[at:place], step]
        at = place
    return made + steps[at:]


def _norm(frame: Frame, choice: Choice) -> Instruction:
    inputs, grads = frame.reads[choice.site.name]
    held = {f"{choice.site.name}: stored": choice.cost.held} if choice.cost.held else {}
    return Instruction(f"{choice.site.name}: norm", held, inputs + grads, norm_transient(choice))


def _sum(frame: Frame, choice: Choice) -> tuple[Instruction, Instruction]:
    """Copies with the rows scaled or cleared, where there are any, then the sum over them."""
    site, cost = choice.site, choice.cost
    inputs, grads = frame.reads[site.name]
    stored = BESIDE if beside(choice) else f"{site.name}: stored"
    reads = inputs + grads if cost.rereads else (stored,) if cost.held else ()
    moved, made, scratch = sum_makes(choice)
    scaled = f"{site.name}: scaled"
    return (Instruction(scaled, {scaled: moved}, reads),
            Instruction(f"{site.name}: sum", {f"{site.name}: sum": made}, (scaled,), scratch))


def beside(choice: Choice) -> bool:
    """True for a site whose stored gradients are put side by side with others'."""
    return bool(choice.cost.held) and small(choice.site, choice.strategy)


def beside_bytes(choices: Sequence[Choice]) -> float:
    """Bytes of what small sites store, side by side."""
    return sum(c.cost.held for c in choices if beside(c))


def norm_transient(choice: Choice) -> float:
    """Bytes that a site's norm needs while it runs, beside what it holds."""
    return max(choice.cost.transient - choice.cost.held, 0.0)


def sum_makes(choice: Choice) -> tuple[float, float, float]:
    """Bytes of a site's scaled copies, of its sum, and of what forming the sum needs beside them."""
    site, cost = choice.site, choice.cost
    # Side by side they are copied once at most, and only where all together are small.
    copied = 0.0 if beside(choice) else summing_bytes(site, cost.held)
    moved = inputs_bytes(site) + outputs_bytes(site) if cost.rereads else copied
    made = float(site.size * accumulator(site.dtype).itemsize)
    return moved, made, sum_scratch(site) if cost.rereads else 0.0


def site_of(instruction: str) -> str:
    """Returns the site that an instruction or a buffer of a step belongs to, '' for forward and backward."""
    name, mark, _ = instruction.rpartition(": ")
    return name if mark else ""
