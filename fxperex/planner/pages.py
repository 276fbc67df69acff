"""Choices for a CPU's heap: what a step holds beyond what the heap keeps is handed back, and touched anew in every step.

One site cannot know: storing a megabyte costs nothing while the heap keeps it, and twenty times its reading once the step as a
whole holds more than `devices.pages.RETURNED`. So each site is asked for its fastest strategy once more, at the price of
touching what it holds, and the answer is taken where it makes the whole faster. Tensors of `workspace.FRESH` bytes and more
are touched anew in any case; their strategies' costs say so.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxperex.devices import Profile
from fxperex.devices.pages import RETURNED, kept
from fxperex.planner.plan import Choice
from fxperex.registry import Cost, reads_inputs
from fxperex.work import inputs_bytes
from fxperex.workspace import FRESH

WORTH = 0.1  # of the sites' time, below which a plan keeps each site's own fastest strategy


def settled(choices: tuple[Choice, ...], profile: Profile) -> tuple[Choice, ...]:
    """Returns `choices`, or others that touch less memory and are faster by `WORTH`."""
    if kept() or _heap(choices) <= RETURNED or any(c.site.device.type != "cpu" for c in choices):
        return choices
    price = (profile.touching(RETURNED) - profile.traffic(RETURNED)) / RETURNED  # it is written in any case
    lean = tuple(c if c.fixed else _leaner(c, price) for c in choices)
    before, after = (sum(c.seconds for c in some) + _faults(some, price) for some in (choices, lean))
    return lean if after < (1 - WORTH) * before else choices


def _leaner(choice: Choice, price: float) -> Choice:
    best = min(choice.costs, key=lambda name: choice.times[name] + price * _held(choice.costs[name]))
    if best == choice.strategy:
        return choice
    return choice.using(best, f"{choice.strategy} would touch {_held(choice.cost) / 1e6:.1f} MB of new memory in every step")


def _faults(choices: Sequence[Choice], price: float) -> float:
    """Seconds of touching anew; up to `RETURNED` bytes stay with the heap from step to step."""
    return max(_heap(choices) - RETURNED, 0.0) * price


def _heap(choices: Sequence[Choice]) -> float:
    """Bytes that the step holds at the end of its backward: what the sites' nodes read, each once, and what the sites store."""
    read = {c.site.node: inputs_bytes(c.site) for c in choices if reads_inputs(c.site.kind)}
    return sum(map(_small, read.values())) + sum(_held(c.cost) for c in choices)


def _held(cost: Cost) -> float:
    return _small(cost.held)


def _small(made: float) -> float:
    return made if made < FRESH else 0.0
