"""A plan's peak memory: the frame of forward and backward, with each site's norm and sum in it.

The order is the step's own (`passes.schedule`): forward, backward, clip factors, weighted sums. A
norm runs after the backward, or as soon as its output gradient exists if that costs no memory
(`liveness.raised`). A site that stores gradients can then free its inputs and output gradient
early. A site that reads them again keeps both until its sum. Small sites come after the others.
What they store is bundled, which means copied into one buffer: after all norms, or right after the
last small site's norm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fxperex.config import accumulator
from fxperex.cost_model.sizes import inputs_bytes, outputs_bytes, sum_scratch, summing_bytes
from fxperex.memory.liveness import Instruction, Listing, Peak, peak, raised
from fxperex.memory.repetition import BACKWARD, FORWARD, SUMS, Program
from fxperex.plan.choice import Choice
from fxperex.rewrite.frame import Frame
from fxperex.strategies.stored import small

BUNDLE = "small sites"


def step_listing(frame: Frame, choices: Sequence[Choice], early: Collection[str]) -> Listing:
    """Returns the Listing of the step under `choices`; the norms of `early` sites are inside the
    backward.
    """
    used = [c for c in choices if c.site.name in frame.reads]
    placed = sorted((frame.ready[c.site.name], i)
                    for i, c in enumerate(used) if c.site.name in early)
    inside = [(place, _norm(frame, used[i])) for place, i in placed]
    norms = [_norm(frame, c) for c in sorted(used, key=bundled) if c.site.name not in early]
    stored = tuple(f"{c.site.name}: stored" for c in used if bundled(c))
    bundle = Instruction(BUNDLE, {BUNDLE: bundle_bytes(used)}, stored)
    final = max((order for order, (_, i) in enumerate(placed) if bundled(used[i])), default=None)
    if BUNDLE in early and final is not None and all(
            c.site.name in early for c in used if bundled(c)):
        inside.insert(final + 1, (inside[final][0], bundle))
    else:
        norms.append(bundle)
    steps = _merged(list(frame.listing.instructions), inside)
    sums = [step for c in used for step in _sum(frame, c)]
    results = frozenset(name for step in sums[1::2] for name in step.makes)
    return replace(frame.listing, instructions=(*steps, *norms, *sums),
                   outputs=frame.listing.outputs | results)


def plan_peak(frame: Frame, choices: Sequence[Choice], recompute: Collection[str] = ()) -> Peak:
    """Returns the Peak of the step under `choices`; instructions in `recompute` run twice."""
    if recompute:
        return peak(program(frame, choices).repeating(recompute)[0])
    sites, freeing = movable(frame, choices)

    def trial(early: list[str]) -> tuple[float, str]:
        highest = peak(step_listing(frame, choices, early))
        name = highest.instruction
        return highest.bytes, BUNDLE if name == BUNDLE else site_of(name)

    return peak(step_listing(frame, choices, raised(sites, freeing, trial)[0]))


def movable(frame: Frame, choices: Sequence[Choice]) -> tuple[list[str], set[str]]:
    """Returns (site names in the order in which their norms run after the backward, with the bundle
    of small sites last; the names of sites whose inputs can be freed once the norm is taken).
    """
    used = sorted((c for c in choices if c.site.name in frame.reads), key=bundled)
    bundle = [BUNDLE] if any(map(bundled, used)) else []
    return [c.site.name for c in used] + bundle, {c.site.name for c in used if not c.cost.rereads}


def program(frame: Frame, choices: Sequence[Choice]) -> Program:
    """Returns the step under `choices` as a Program whose forward instructions may be repeated.

    All norms are inside the backward. There they read what the backward recomputes anyway.
    """
    listing = step_listing(frame, choices, [c.site.name for c in choices] + [BUNDLE])
    # Views have no memory of their own; after the forward they are formed next to their readers.
    views = {s.name for s in frame.listing.instructions[frame.forward:] if not s.makes}
    steps = tuple(s for s in listing.instructions if s.name not in views)
    sums = 2 * sum(c.site.name in frame.reads for c in choices)
    phases = [FORWARD if i < frame.forward else BACKWARD if i < len(steps) - sums else SUMS
              for i in range(len(steps))]
    return Program(replace(listing, instructions=steps), phases)


def _merged(steps: list[Instruction], placed: list[tuple[int, Instruction]]) -> list[Instruction]:
    """Returns `steps` with each of `placed` before the step at its place; places ascend."""
    merged: list[Instruction] = []
    start = 0
    for place, step in placed:
        merged += [*steps[start:place], step]
        start = place
    return merged + steps[start:]


def _norm(frame: Frame, choice: Choice) -> Instruction:
    inputs, grads = frame.reads[choice.site.name]
    held = {f"{choice.site.name}: stored": choice.cost.held} if choice.cost.held else {}
    return Instruction(f"{choice.site.name}: norm", held, inputs + grads, norm_transient(choice))


def _sum(frame: Frame, choice: Choice) -> tuple[Instruction, Instruction]:
    """Returns (the copies whose rows are scaled or cleared, the sum over them)."""
    site, cost = choice.site, choice.cost
    inputs, grads = frame.reads[site.name]
    stored = BUNDLE if bundled(choice) else f"{site.name}: stored"
    reads = inputs + grads if cost.rereads else (stored,) if cost.held else ()
    copies, result, scratch = sum_makes(choice)
    scaled = f"{site.name}: scaled"
    return (Instruction(scaled, {scaled: copies}, reads),
            Instruction(f"{site.name}: sum", {f"{site.name}: sum": result}, (scaled,), scratch))


def bundled(choice: Choice) -> bool:
    """Returns True for a site whose stored gradients are copied into one buffer with others'."""
    return bool(choice.cost.held) and small(choice.site, choice.strategy)


def bundle_bytes(choices: Sequence[Choice]) -> float:
    """Returns the bytes of the buffer that holds what small sites store."""
    return sum(c.cost.held for c in choices if bundled(c))


def norm_transient(choice: Choice) -> float:
    """Returns the bytes that a site's norm needs while it runs, in addition to what it holds."""
    return max(choice.cost.transient - choice.cost.held, 0.0)


def sum_makes(choice: Choice) -> tuple[float, float, float]:
    """Returns bytes of a site's scaled copies, of its sum, and of the scratch for the sum."""
    site, cost = choice.site, choice.cost
    # A bundle is copied at most once, and only if it is small as a whole.
    copied = 0.0 if bundled(choice) else summing_bytes(site, cost.held)
    copies = inputs_bytes(site) + outputs_bytes(site) if cost.rereads else copied
    result = float(site.size * accumulator(site.dtype).itemsize)
    return copies, result, sum_scratch(site) if cost.rereads else 0.0


def site_of(instruction: str) -> str:
    """Returns the site of a step's instruction or buffer; '' for forward and backward."""
    name, mark, _ = instruction.rpartition(": ")
    return name if mark else ""
