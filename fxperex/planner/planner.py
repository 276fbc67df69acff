"""make_plan: the cheapest legal strategy for every site, within a budget, at the best rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fxperex.analysis.sites import Analysis
from fxperex.devices import Profile
from fxperex.errors import ConfigError
from fxperex.plan.choice import Budget, Choice
from fxperex.plan.plan import Plan
from fxperex.plan.same_model import check_same
from fxperex.planner.candidates import choose, forced, naive
from fxperex.planner.fit_budget import refuse, within
from fxperex.planner.memory import plan_peak
from fxperex.planner.search import notes
from fxperex.registry import NAIVE
from fxperex.rewrite.frame import Frame, Frames
from fxperex.sites import Site, at_rows

Timer = Callable[[Site, str], float]


@dataclass(frozen=True)
class _Request:
    """The arguments of `make_plan` that do not depend on the number of rows tried."""

    analysis: Analysis
    profile: Profile
    strategy: str | Mapping[str, str] | Plan
    batch: int
    memory: int | None
    frozen: tuple[str, ...]
    timer: Timer | None

    def draft(self, rows: int) -> Plan:
        """Returns the plan at `rows`, whatever memory it needs."""
        by_site, everywhere = self._requested()
        one_by_one = everywhere == NAIVE
        groups = {site.name: tuple(at_rows(member, rows) for member in group)
                  for group in self.analysis.groups for site in group}
        sites = [at_rows(site, 1 if one_by_one else rows) for site in self.analysis.sites]
        if one_by_one:
            choices = tuple(naive(site, self.profile) for site in sites)
        else:
            choices = tuple(choose(site, self.profile, groups.get(site.name, (site,)),
                                   by_site.get(site.name), everywhere) for site in sites)
        reuse = isinstance(self.strategy, Plan) and self.memory is None
        costs = [cost for choice in choices for cost in choice.costs.values()]
        plan = Plan(choices, NAIVE if one_by_one else "graph", rows, self.profile.device,
                    self.analysis.unused, self.frozen,
                    recompute=self.strategy.recompute if reuse else None,
                    unmeasured=self.profile.relatives(costs))
        if self.timer is not None and self.strategy == "measure":
            plan = refine(plan, self.profile, self.timer)
        return plan

    def _requested(self) -> tuple[dict[str, str], str]:
        """Returns ({site: its strategy}, the strategy for all sites, or "auto" or "measure")."""
        if isinstance(self.strategy, Plan):
            check_same(self.strategy, self.analysis.sites)
            by_site = {c.site.name: c.strategy for c in self.strategy.choices}
            return by_site, NAIVE if self.strategy.mode == NAIVE else "auto"
        everywhere = self.strategy if isinstance(self.strategy, str) else "auto"
        return forced(self.analysis, self.strategy), everywhere


def make_plan(analysis: Analysis, profile: Profile, rows: int | None,
              strategy: str | Mapping[str, str] | Plan = "auto", memory: int | None = None, *,
              batch: int | None = None, frozen: tuple[str, ...] = (),
              frames: Callable[[], Frames] | None = None, timer: Timer | None = None) -> Plan:
    """Returns the Plan for steps of `rows` examples; `rows=None` chooses them, at most `batch`.

    `frames` is called only if memory matters, `timer` only for strategy="measure".
    Raises ConfigError for unknown names, globs without a match, an illegal choice, a plan of
    another model, and a budget that no plan fits.
    """
    start_rows = rows or batch or 1
    request = _Request(analysis, profile, strategy, start_rows, memory, frozen, timer)
    plan = request.draft(start_rows)
    if frames is None or (memory is None and rows is not None):
        return plan
    traced = frames()
    if rows is None:
        return _choose_rows(plan, request, traced)
    assert memory is not None
    frame = traced.at(plan.frame_rows)
    fitted = _fitted(plan, frame, memory, profile)
    if fitted is None:
        raise refuse(frame, plan.choices, memory)
    return fitted


def with_frame(plan: Plan, frame: Frame, profile: Profile) -> Plan:
    """Returns `plan` with the predicted seconds of forward and backward, and the step's peak."""
    repeated = plan.recompute
    unmeasured = {**plan.unmeasured, **profile.relatives(frame.costs)}
    seconds = plan.turns * sum(profile.seconds(cost) for cost in frame.costs)
    peak = plan_peak(frame, plan.choices, repeated.nodes if repeated else ())
    return replace(plan, frame_seconds=seconds + (repeated.seconds if repeated else 0.0),
                   peak=peak.bytes, unmeasured=unmeasured)


def refine(plan: Plan, profile: Profile, timer: Timer) -> Plan:
    """Returns `plan` with close candidates timed on the device, and the fastest of them chosen.

    `timer(site, strategy)` returns seconds. It times the strategies whose range of predicted times
    overlaps that of the best.
    """
    choices = tuple(choice if choice.fixed else _refined(choice, profile, timer)
                    for choice in plan.choices)
    return replace(plan, choices=choices)


def _refined(choice: Choice, profile: Profile, timer: Timer) -> Choice:
    def low(name: str) -> float:
        return choice.times[name] / (1 + profile.error(choice.costs[name]))

    ceiling = min(seconds * (1 + profile.error(choice.costs[name]))
                  for name, seconds in choice.times.items())
    close = [name for name in choice.costs if low(name) <= ceiling]
    if len(close) < 2:
        return choice
    times = {name: timer(choice.site, name) for name in close}
    return replace(choice, strategy=min(times, key=times.__getitem__),
                   times={**choice.times, **times}, measured=frozenset(times))


def _fitted(plan: Plan, frame: Frame, memory: int, profile: Profile) -> Plan | None:
    unlimited = with_frame(plan, frame, profile)
    assignment = within(frame, plan.choices, memory, profile)
    if assignment is None:
        return None
    choices, recompute = assignment
    choices = notes(plan.choices, choices)
    fitted = with_frame(replace(plan, choices=choices, recompute=recompute), frame, profile)
    assert unlimited.peak is not None
    return replace(fitted, budget=Budget(memory, plan.seconds, unlimited.peak))


def _choose_rows(plan: Plan, request: _Request, frames: Frames) -> Plan:
    """Returns the plan that is fastest for a batch: at all its rows, or a half, a quarter, ..."""
    batch, memory, profile = request.batch, request.memory, request.profile
    candidates: list[tuple[float, int, Plan]] = []
    sizes = sorted({-(-batch // 2**k) for k in range(batch.bit_length() + 1)}, reverse=True)
    for rows in sizes:
        draft = plan if rows == plan.rows else request.draft(rows)
        frame = frames.at(draft.frame_rows)
        fitted = (with_frame(draft, frame, profile) if memory is None
                  else _fitted(draft, frame, memory, profile))
        if fitted is not None:
            assert fitted.frame_seconds is not None
            seconds = (fitted.frame_seconds + fitted.seconds) * -(-batch // rows)
            candidates.append((seconds, -rows, fitted))
    if not candidates:
        assert memory is not None
        raise refuse(frames.at(1), request.draft(1).choices, memory)
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def check_rows(plan: Plan, rows: int | None) -> int:
    """Returns the rows of a ready-made plan. Raises ConfigError if others were asked for."""
    if rows is not None and rows != plan.rows:
        raise ConfigError(f"the plan was made for physical_batch={plan.rows}, and {rows} was "
                          "asked for; leave one out")
    return plan.rows
