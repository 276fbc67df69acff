"""The fastest plan within a budget, by strategies alone or with recomputing, and the smallest budget that any plan fits."""

from __future__ import annotations

from fxperex.devices import Profile
from fxperex.errors import ConfigError
from fxperex.frame import Frame
from fxperex.liveness import Peak
from fxperex.planner.budget import Choices, fit, smallest, starts
from fxperex.planner.memory import plan_peak, site_of
from fxperex.planner.plan import Recompute
from fxperex.planner.recompute import Pools, cheapest, least
from fxperex.planner.sizes import budget_text, size

Found = tuple[Choices, Recompute | None]


def within(frame: Frame, choices: Choices, memory: int, profile: Profile) -> Found | None:
    """Returns the fastest strategies found that fit `memory` bytes, with what they recompute; None where none fits."""
    if plan_peak(frame, choices).bytes <= memory:
        return choices, None
    alone = fit(frame, choices, memory)
    found: list[Found] = [] if alone is None else [(alone, None)]
    found += _recomputing(frame, starts(frame, choices, memory), memory, profile)
    if not found:
        found = _recomputing(frame, [smallest(frame, choices)], memory, profile)
    return min(found, key=_seconds, default=None)


def refuse(frame: Frame, choices: Choices, memory: int) -> ConfigError:
    """Returns the error that says the smallest budget that would do, and which site sets it."""
    slim, found = _smallest(frame, choices)
    sites = [site_of(name) for name, _ in found.live] + [site_of(found.at)]
    setter = site_of(found.at) or next((s for s in sites if s), "")
    strategy = next((f" ({c.strategy})" for c in slim if c.site.name == setter), "")
    at = f"the site {setter}{strategy}" if setter else f"forward and backward, at node {found.at}"
    return ConfigError(
        f"memory={memory} bytes ({size(memory)}) holds no plan of this step with {frame.rows} rows, even with activations "
        f"recomputed: the smallest budget that does is {budget_text(found.bytes)}, set by {at}; parameters and batch alone take "
        f"{size(frame.listing.inputs)}. "
        'Raise memory, or lower physical_batch (or pass physical_batch="auto")')


def _recomputing(frame: Frame, some: list[Choices], memory: int, profile: Profile) -> list[Found]:
    if _alone(some[0]):
        return []
    made = [(choices, cheapest(Pools(frame, choices), memory, profile)) for choices in some]
    return [(choices, again) for choices, again in made if again is not None]


def _alone(choices: Choices) -> bool:
    """True for a step that runs one example at a time: its backward is another, and has no part for recomputing."""
    return any(c.strategy == "naive" for c in choices)


def _smallest(frame: Frame, choices: Choices) -> tuple[Choices, Peak]:
    """Choices of the least peak that `within` finds for any budget, and that peak."""
    slim = smallest(frame, choices)
    found = [(slim, plan_peak(frame, slim))]
    for made in [] if _alone(slim) else [*starts(frame, choices), slim]:
        if names := least(Pools(frame, made)):
            found.append((made, plan_peak(frame, made, names)))
    return min(found, key=lambda one: one[1].bytes)


def _seconds(found: Found) -> float:
    choices, again = found
    return sum(c.seconds for c in choices) + (again.seconds if again else 0.0)
