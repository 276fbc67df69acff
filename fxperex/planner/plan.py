"""Plan: one decision per site, with what it costs and what the alternatives would. Frozen; prints as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fxperex.errors import ConfigError
from fxperex.registry import Cost, Site


@dataclass(frozen=True)
class Choice:
    """One site's decision. `costs` and `times` (seconds) hold every legal strategy, `refused` the reasons of the others.

    `fixed`: somebody asked for it; `measured`: strategies whose time was taken on the device, not predicted.
    """

    site: Site
    strategy: str
    costs: Mapping[str, Cost]
    times: Mapping[str, float]
    refused: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    fixed: bool = False
    measured: frozenset[str] = frozenset()

    @property
    def seconds(self) -> float:
        return self.times[self.strategy]

    @property
    def cost(self) -> Cost:
        return self.costs[self.strategy]

    @property
    def rejected(self) -> dict[str, str | float]:
        """Every other strategy: the reason why it is illegal, or its predicted seconds."""
        return {**self.refused, **{k: v for k, v in self.times.items() if k != self.strategy}}

    @property
    def runner_up(self) -> str | None:
        """The fastest other legal strategy."""
        others = {k: v for k, v in self.times.items() if k != self.strategy}
        return min(others, key=others.__getitem__) if others else None

    def using(self, strategy: str, note: str = "") -> Choice:
        return replace(self, strategy=strategy, note=note or self.note)


@dataclass(frozen=True)
class Budget:
    """`memory` bytes were allowed; without the limit the sites would take `free_seconds` and the step `free_peak` bytes."""

    memory: int
    free_seconds: float
    free_peak: float


@dataclass(frozen=True)
class Recompute:
    """Forward `nodes` that run again behind the forward, for `seconds` in all, so that `bytes` of results need not be kept."""

    nodes: tuple[str, ...]
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """`choices` by site; `whole` is "naive" where the step runs one example at a time, else "graph".

    `rows`: examples of one compiled step; `frame_seconds`, `peak`: forward and backward, and bytes of the whole step,
    where the frame was traced (a budget, `physical_batch="auto"` or `explain`), else None. `recompute`: what a budget made
    the step compute twice, its seconds among those of the frame; else None.
    """

    choices: tuple[Choice, ...]
    whole: str
    rows: int
    device: str
    unused: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    budget: Budget | None = None
    frame_seconds: float | None = None
    peak: float | None = None
    recompute: Recompute | None = None

    def strategy_of(self, site: str) -> str:
        """Returns the strategy of the site named `site`; KeyError if there is none."""
        found = {c.site.name: c.strategy for c in self.choices}
        return found[site]

    @property
    def frame_rows(self) -> int:
        """Examples that are in memory at once."""
        return 1 if self.whole == "naive" else self.rows

    @property
    def turns(self) -> int:
        """Runs of the step graph for `rows` examples."""
        return self.rows if self.whole == "naive" else 1

    @property
    def seconds(self) -> float:
        """Predicted seconds of the sites, beside forward and backward."""
        return self.turns * sum(c.seconds for c in self.choices)

    @property
    def held(self) -> float:
        """Bytes that strategies keep until the clip factors are known."""
        return sum(c.cost.held for c in self.choices)

    def single(self, strategy: str) -> float:
        """Returns the sites' seconds if `strategy` served wherever it is legal, and this plan's choice elsewhere."""
        return sum(c.times.get(strategy, c.seconds) for c in self.choices)

    def __str__(self) -> str:
        from fxperex.report.explain import table

        return table(self)

    def _repr_html_(self) -> str:
        from fxperex.report.html import plan_html

        return plan_html(self)

    def to_json(self) -> str:
        """Returns the plan as JSON text; `Plan.from_json` reads it back, equal."""
        from fxperex.planner.serial import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Returns the Plan that `to_json` wrote. Raises ConfigError that says what is wrong with the text."""
        from fxperex.planner.serial import from_json

        return from_json(text)


def check_same(plan: Plan, sites: tuple[Site, ...]) -> None:
    """Raises ConfigError, naming the first node that differs, unless `plan` was made for `sites`."""
    for mine, theirs in zip(sites, (c.site for c in plan.choices), strict=False):
        for what in ("name", "node", "op", "kind", "arg", "shape", "dtype", "params"):
            here, there = getattr(mine, what), getattr(theirs, what)
            if here != there:
                raise ConfigError(f"the plan was made for another model: node {mine.node} ({mine.name}, {mine.where}) has "
                                  f"{what} {here} here, and {there} in the plan (node {theirs.node})")
    if len(sites) != len(plan.choices):
        longer = sites if len(sites) > len(plan.choices) else tuple(c.site for c in plan.choices)
        extra = longer[min(len(sites), len(plan.choices))]
        side = "the plan does not have it" if longer is sites else "this model does not have it"
        raise ConfigError(f"the plan was made for another model: node {extra.node} ({extra.name}): {side}")

