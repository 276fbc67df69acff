"""make_plan: the cheapest legal strategy for every site, within the budget, at the best number of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fxperex.analysis.sites import Analysis
from fxperex.devices import Profile
from fxperex.errors import ConfigError
from fxperex.frame import Frame, Frames
from fxperex.planner.budget import notes
from fxperex.planner.choose import choose, forced, naive
from fxperex.planner.memory import plan_peak
from fxperex.planner.plan import Budget, Choice, Plan, check_same
from fxperex.planner.within import refuse, within
from fxperex.registry import Site, at_rows

Timer = Callable[[Site, str], float]


@dataclass(frozen=True)
class _Request:
    """What is asked of the planner, whatever number of rows it tries."""

    analysis: Analysis
    profile: Profile
    strategy: str | Mapping[str, str] | Plan
    batch: int
    memory: int | None
    frozen: tuple[str, ...]
    timer: Timer | None

    def draft(self, rows: int) -> Plan:
        """Returns the plan at `rows` without a look at memory."""
        wanted, whole = self._wanted()
        groups = {s.name: tuple(at_rows(m, rows) for m in group) for group in self.analysis.groups for s in group}
        sites = [at_rows(s, 1 if whole == "naive" else rows) for s in self.analysis.sites]
        if whole == "naive":
            choices = tuple(naive(s, self.profile) for s in sites)
        else:
            choices = tuple(choose(s, self.profile, groups.get(s.name, (s,)), wanted.get(s.name), whole) for s in sites)
        how = "naive" if whole == "naive" else "graph"
        again = self.strategy.recompute if isinstance(self.strategy, Plan) and self.memory is None else None
        plan = Plan(choices, how, rows, self.profile.device, self.analysis.unused, self.frozen, recompute=again)
        if self.timer is not None and self.strategy == "measure":
            plan = refine(plan, self.profile, self.timer)
        return plan

    def _wanted(self) -> tuple[dict[str, str], str]:
        """(strategy asked for by site, strategy asked for everywhere or a word such as auto)."""
        if isinstance(self.strategy, Plan):
            check_same(self.strategy, self.analysis.sites)
            return {c.site.name: c.strategy for c in self.strategy.choices}, \
                "naive" if self.strategy.whole == "naive" else "auto"
        return forced(self.analysis, self.strategy), self.strategy if isinstance(self.strategy, str) else "auto"


def make_plan(analysis: Analysis, profile: Profile, rows: int | None, strategy: str | Mapping[str, str] | Plan = "auto",
              memory: int | None = None, *, batch: int | None = None, frozen: tuple[str, ...] = (),
              frames: Callable[[], Frames] | None = None, timer: Timer | None = None) -> Plan:
    """Returns the Plan for steps of `rows` examples; None: the planner's choice of at most `batch`.

    `frames` is called only where memory is in question, `timer` only for strategy="measure".
    Raises ConfigError for unknown names, globs without match, an illegal or foreign choice, a budget nothing fits.
    """
    first = rows or batch or 1
    request = _Request(analysis, profile, strategy, first, memory, frozen, timer)
    plan = request.draft(first)
    if frames is None or (memory is None and rows is not None):
        return plan
    made = frames()
    if rows is None:
        return _choose_rows(plan, request, made)
    assert memory is not None
    fitted = _fitted(plan, made.at(plan.frame_rows), memory, profile)
    if fitted is None:
        raise refuse(made.at(plan.frame_rows), plan.choices, memory)
    return fitted


def with_frame(plan: Plan, frame: Frame, profile: Profile) -> Plan:
    """Returns `plan` with the predicted seconds of forward and backward, and the peak bytes of the whole step."""
    again = plan.recompute
    seconds = plan.turns * sum(profile.seconds(c) for c in frame.costs) + (again.seconds if again else 0.0)
    return replace(plan, frame_seconds=seconds, peak=plan_peak(frame, plan.choices, again.nodes if again else ()).bytes)


def refine(plan: Plan, profile: Profile, timer: Timer) -> Plan:
    """Returns `plan` with the candidates that the model cannot tell apart timed on the device, the faster chosen.

    `timer(site, strategy)` gives seconds; it is asked only for strategies whose predicted range reaches the best's.
    """
    return replace(plan, choices=tuple(c if c.fixed else _refined(c, profile, timer) for c in plan.choices))


def _refined(choice: Choice, profile: Profile, timer: Timer) -> Choice:
    def low(name: str) -> float:
        return choice.times[name] / (1 + profile.error(choice.costs[name]))

    ceiling = min(t * (1 + profile.error(choice.costs[k])) for k, t in choice.times.items())
    close = [k for k in choice.costs if low(k) <= ceiling]
    if len(close) < 2:
        return choice
    taken = {k: timer(choice.site, k) for k in close}
    return replace(choice, strategy=min(taken, key=taken.__getitem__), times={**choice.times, **taken}, measured=frozenset(taken))


def _fitted(plan: Plan, frame: Frame, memory: int, profile: Profile) -> Plan | None:
    free = with_frame(plan, frame, profile)
    found = within(frame, plan.choices, memory, profile)
    if found is None:
        return None
    choices, again = found
    made = with_frame(replace(plan, choices=notes(plan.choices, choices), recompute=again), frame, profile)
    assert free.peak is not None
    return replace(made, budget=Budget(memory, plan.seconds, free.peak))


def _choose_rows(plan: Plan, request: _Request, frames: Frames) -> Plan:
    """The number of rows with the least time for a batch, among the batch's own and its halvings, that fits."""
    batch, memory, profile = request.batch, request.memory, request.profile
    found: list[tuple[float, int, Plan]] = []
    sizes = sorted({-(-batch // 2**k) for k in range(batch.bit_length() + 1)}, reverse=True)
    for rows in sizes:
        drafted = plan if rows == plan.rows else request.draft(rows)
        frame = frames.at(drafted.frame_rows)
        made = with_frame(drafted, frame, profile) if memory is None else _fitted(drafted, frame, memory, profile)
        if made is not None:
            assert made.frame_seconds is not None
            found.append(((made.frame_seconds + made.seconds) * -(-batch // rows), -rows, made))
    if not found:
        assert memory is not None
        raise refuse(frames.at(1), request.draft(1).choices, memory)
    return min(found, key=lambda item: item[:2])[2]


def check_rows(plan: Plan, rows: int | None) -> int:
    """Returns the physical batch of a ready-made plan. Raises ConfigError if another was asked for."""
    if rows is not None and rows != plan.rows:
        raise ConfigError(f"the plan was made for physical_batch={plan.rows}, and {rows} was asked for; leave one out")
    return plan.rows
