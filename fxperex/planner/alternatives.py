"""What a plan is compared with: each strategy wherever it is legal, the plan's choice elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from fxperex.devices import Profile
from fxperex.plan.alternative import Alternative
from fxperex.plan.plan import Plan
from fxperex.planner.candidates import naive
from fxperex.planner.memory import plan_peak
from fxperex.planner.planner import with_frame
from fxperex.registry import NAIVE, strategies
from fxperex.rewrite.frame import Frames
from fxperex.sites import at_rows


def explained(plan: Plan, frames: Frames, profile: Profile) -> tuple[Plan, list[Alternative]]:
    """Returns (`plan` with its peak and the seconds of forward and backward, its alternatives)."""
    complete = with_frame(plan, frames.at(plan.frame_rows), profile)
    return complete, alternatives(plan, frames, profile)


def alternatives(plan: Plan, frames: Frames, profile: Profile) -> list[Alternative]:
    """Returns the plan itself, as "this plan", then each strategy that is legal somewhere."""
    return list(_alternatives(plan, frames, profile))


def _alternatives(plan: Plan, frames: Frames, profile: Profile) -> Iterator[Alternative]:
    frame, count = frames.at(plan.frame_rows), len(plan.choices)
    forward = plan.turns * sum(profile.seconds(c) for c in frame.costs)
    repeated = plan.recompute
    yield Alternative("this plan", count, count, plan.seconds,
                      plan.seconds + forward + (repeated.seconds if repeated else 0.0),
                      plan_peak(frame, plan.choices, repeated.nodes if repeated else ()).bytes)
    if plan.mode == NAIVE:
        return
    for name in strategies():
        choices = [c.using(name) if name in c.costs else c for c in plan.choices]
        legal = sum(name in c.costs for c in plan.choices)
        if legal:
            seconds = sum(c.seconds for c in choices)
            yield Alternative(name, legal, count, seconds, seconds + forward,
                              plan_peak(frame, choices).bytes)
    yield _one_by_one(plan, frames, profile)


def _one_by_one(plan: Plan, frames: Frames, profile: Profile) -> Alternative:
    frame = frames.at(1)
    choices = [naive(at_rows(c.site, 1), profile) for c in plan.choices]
    count, seconds = len(choices), plan.rows * sum(c.seconds for c in choices)
    forward = plan.rows * sum(profile.seconds(c) for c in frame.costs)
    return Alternative(NAIVE, count, count, seconds, seconds + forward,
                       plan_peak(frame, choices).bytes)
