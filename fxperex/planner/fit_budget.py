"""The fastest plan within a budget, with or without recomputing, and the smallest that works."""

from __future__ import annotations

from fxperex.devices import Profile
from fxperex.errors import ConfigError
from fxperex.memory.liveness import Peak
from fxperex.plan.byte_sizes import budget_text, size
from fxperex.plan.choice import Recompute
from fxperex.planner.memory import plan_peak, site_of
from fxperex.planner.recompute import Pools, cheapest, smallest_pool
from fxperex.planner.search import Choices, fit, smallest, starts
from fxperex.registry import NAIVE
from fxperex.rewrite.frame import Frame

Assignment = tuple[Choices, Recompute | None]


def within(frame: Frame, choices: Choices, memory: int, profile: Profile) -> Assignment | None:
    """Returns the fastest assignment found that fits `memory` bytes; None if there is none.

    An assignment is a strategy for every site, and the values that the step computes twice.
    """
    if plan_peak(frame, choices).bytes <= memory:
        return choices, None
    without_recomputing = fit(frame, choices, memory)
    fitting: list[Assignment] = [] if without_recomputing is None else [(without_recomputing, None)]
    fitting += _recomputing(frame, starts(frame, choices, memory), memory, profile)
    if not fitting:
        fitting = _recomputing(frame, [smallest(frame, choices)], memory, profile)
    return min(fitting, key=_seconds, default=None)


def refuse(frame: Frame, choices: Choices, memory: int) -> ConfigError:
    """Returns the error that names the smallest budget that works, and the site that sets it."""
    slimmest, peak = _smallest(frame, choices)
    alive = [site_of(name) for name, _ in peak.buffers]
    setter = site_of(peak.instruction) or next((site for site in alive if site), "")
    strategy = next((f" ({c.strategy})" for c in slimmest if c.site.name == setter), "")
    node = f"forward and backward, at node {peak.instruction}"
    cause = f"the site {setter}{strategy}" if setter else node
    return ConfigError(
        f"memory={memory} bytes ({size(memory)}) holds no plan of this step with {frame.rows} "
        "rows, even with activations recomputed: the smallest budget that does is "
        f"{budget_text(peak.bytes)}, set by {cause}; parameters and batch alone take "
        f"{size(frame.listing.inputs)}. "
        'Raise memory, or lower physical_batch (or pass physical_batch="auto")')


def _recomputing(frame: Frame, starting: list[Choices], memory: int,
                 profile: Profile) -> list[Assignment]:
    if _one_by_one(starting[0]):
        return []
    candidates = [(choices, cheapest(Pools(frame, choices), memory, profile))
                  for choices in starting]
    return [(choices, recompute) for choices, recompute in candidates if recompute is not None]


def _one_by_one(choices: Choices) -> bool:
    """True if the step runs one example at a time; such a step does not support recomputing."""
    return any(c.strategy == NAIVE for c in choices)


def _smallest(frame: Frame, choices: Choices) -> tuple[Choices, Peak]:
    """Returns the choices with the lowest peak that `within` can reach, and that peak."""
    slimmest = smallest(frame, choices)
    reached = [(slimmest, plan_peak(frame, slimmest))]
    for candidate in [] if _one_by_one(slimmest) else [*starts(frame, choices), slimmest]:
        if names := smallest_pool(Pools(frame, candidate)):
            reached.append((candidate, plan_peak(frame, candidate, names)))
    return min(reached, key=lambda pair: pair[1].bytes)


def _seconds(assignment: Assignment) -> float:
    choices, recompute = assignment
    return sum(c.seconds for c in choices) + (recompute.seconds if recompute else 0.0)
