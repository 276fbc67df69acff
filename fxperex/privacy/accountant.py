"""What a run costs: (epsilon, delta), by dp-accounting.

The event always comes from the sampler that draws the batches (`sampler.event`), never from a rate
given by hand. "pld": privacy loss distributions, rounded pessimistically; "rdp": Renyi orders,
mostly looser, and independent. "smaller" (default): both are bounds, so the smaller of the two is
one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fxperex.errors import ConfigError
from fxperex.privacy.checks import needed, one_of, positive, probability, whole_number

if TYPE_CHECKING:
    from dp_accounting import DpEvent

METHODS = ("smaller", "pld", "rdp")
# The field's three, and dp-accounting's names for them.
RELATIONS = {
    "add-or-remove": "ADD_OR_REMOVE_ONE", "zero-out": "REPLACE_SPECIAL", "replace": "REPLACE_ONE"
}
# Widths of the loss grid, which rounds upwards. A step's losses are narrower than the usual one if
# a run spends little or takes many steps: the grid is then a fixed part of the epsilon by Renyi
# orders, in powers of two, and no finer than is worth its time.
FINE, FINEST, PART = 1e-4, 6, 2.0**-14
TYPICAL_DELTA = 1e-5
# Fractional orders are slow and their series often fails to converge; whole ones bound from above
# all the same.
ORDERS = (*range(2, 64), *range(64, 512, 16), 1024)


class Sampler(Protocol):
    """What the accountant needs of a sampler."""

    steps: int

    def event(self, noise_multiplier: float) -> DpEvent: ...
    def units(self, steps: int, first: int = 0) -> int: ...
    def relations(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Bound:
    """An upper bound of epsilon, and the account that it is by."""

    epsilon: float
    method: str


def epsilon(sampler: Sampler, noise_multiplier: float, delta: float, *, steps: int | None = None,
            method: str = "smaller", relation: str = "add-or-remove") -> float:
    """Returns an upper bound of epsilon at `delta` after `steps` steps (default: all planned).

    Infinite if no finite epsilon holds. Raises ConfigError.
    """
    count = sampler.units(sampler.steps if steps is None else whole_number(steps, "steps"))
    return epsilon_of(sampler, noise_multiplier, delta, count, method=method, relation=relation)


def epsilon_of(sampler: Sampler, noise_multiplier: float, delta: float, units: int, *,
               method: str = "smaller", relation: str = "add-or-remove") -> float:
    """Returns an upper bound of epsilon after `units` of the sampler's units.

    Raises ConfigError.
    """
    return bound(sampler, noise_multiplier, delta, units, method, relation).epsilon


def bound(sampler: Sampler, noise_multiplier: float, delta: float, units: int,
          method: str = "smaller", relation: str = "add-or-remove", coarser: int = 1) -> Bound:
    """Returns epsilon as `epsilon_of`, with the account it is by; on a grid `coarser` times as
    wide.

    Raises ConfigError.
    """
    sigma, delta = positive(noise_multiplier, "noise_multiplier"), probability(delta, "delta")
    one_of(method, "accounting method", METHODS)
    check_relation(sampler, relation)
    if method == "rdp" and relation == "replace":
        raise ConfigError('the account "rdp" does not cover the relation "replace"; use "pld"')
    whole_number(units, "units")
    event = sampler.event(sigma)
    bounds = []
    if method != "rdp":
        grid = coarser * _grid(sampler, sigma, units, relation)
        bounds.append(Bound(_epsilon(_maker("pld", relation, grid), event, units, delta), "pld"))
    if method == "rdp" or (method == "smaller" and _has_orders(event, relation)):
        bounds.append(Bound(_epsilon(_maker("rdp", relation), event, units, delta), "rdp"))
    return min(bounds, key=lambda b: b.epsilon)


def epsilon_of_runs(runs: Sequence[tuple[Sampler, float, int]], delta: float, *,
                    method: str = "smaller", relation: str = "add-or-remove") -> float:
    """Returns an upper bound of epsilon of several runs on the same data together.

    runs: (sampler, noise multiplier, units spent) of each. Raises ConfigError.
    """
    probability(delta, "delta")
    spent = [run for run in runs if run[2]]
    if len(spent) < 2:
        return max((epsilon_of(sampler, sigma, delta, units, method=method, relation=relation)
                    for sampler, sigma, units in spent), default=0.0)
    one_of(method, "accounting method", METHODS)
    for sampler, _, _ in spent:
        check_relation(sampler, relation)
    events = [(sampler.event(sigma), units) for sampler, sigma, units in spent]
    orders = all(_has_orders(event, relation) for event, _ in events)
    makers = [_maker("pld", relation)] if method != "rdp" else []
    makers += [_maker("rdp", relation)] if method == "rdp" or (method == "smaller" and orders) \
        else []
    return min(_epsilon_of_events(make, events, delta) for make in makers)


def _epsilon_of_events(make: Callable[[], Any], events: Sequence[tuple[DpEvent, int]],
                       delta: float) -> float:
    account = make()
    for event, units in events:
        account.compose(event, units)
    return max(0.0, float(account.get_epsilon(delta)))


def _grid(sampler: Sampler, sigma: float, units: int, relation: str) -> float:
    """Returns the width of the loss grid for this run, the same at every delta."""
    rough = by_orders(sampler, sigma, units, TYPICAL_DELTA, relation)
    if not 0 < rough < FINE / PART:
        return FINE
    return FINE * 2.0 ** max(-FINEST, math.floor(math.log2(PART * rough / FINE)))


def by_orders(sampler: Sampler, sigma: float, units: int, delta: float, relation: str) -> float:
    """Returns epsilon by Renyi orders; infinite for an event that they do not know."""
    make = _maker("rdp", "add-or-remove" if relation == "replace" else relation)
    # Replacing is removing and adding: twice as far.
    event = sampler.event(sigma / 2 if relation == "replace" else sigma)
    return _epsilon(make, event, units, delta) if make().supports(event) else math.inf


def _has_orders(event: DpEvent, relation: str) -> bool:
    return relation != "replace" and _maker("rdp", relation)().supports(event)


def _epsilon(make: Callable[[], Any], event: DpEvent, count: int, delta: float) -> float:
    if count == 0:
        return 0.0
    return max(0.0, float(_composed(make, event, count).get_epsilon(delta)))


# Of some megabytes each; asking again, also at another delta, is free.
@functools.lru_cache(maxsize=12)
def _composed(make: Callable[[], Any], event: DpEvent, count: int) -> Any:
    account = make()
    if not account.supports(event):
        raise ConfigError(f"this account does not know {type(event).__name__} under this "
                          "relation; use method \"pld\"")
    return account.compose(event, count)


def check_relation(sampler: Sampler, relation: str) -> None:
    """Raises ConfigError unless the sampler has a guarantee under `relation`."""
    one_of(relation, "relation", RELATIONS)
    if relation not in sampler.relations():
        raise ConfigError(f"{type(sampler).__name__} has no guarantee under the relation "
                          f"{relation!r}; it has one under {' or '.join(sampler.relations())}")


@functools.cache  # one maker each, so that what it composed is used again
def _maker(method: str, relation: str, grid: float = FINE) -> Callable[[], Any]:
    """Returns a function that makes a fresh account."""
    accounting = needed("dp_accounting")
    neighbours = accounting.NeighboringRelation[RELATIONS[relation]]
    if method == "pld":
        return lambda: accounting.pld.PLDAccountant(
            neighbours, value_discretization_interval=grid)
    return lambda: accounting.rdp.RdpAccountant(ORDERS, neighbours)
