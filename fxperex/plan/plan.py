"""Plan: one decision per site, with what it costs and what the alternatives would. Frozen; prints
as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fxperex.costs import Cost
from fxperex.errors import ConfigError
from fxperex.sites import Site


@dataclass(frozen=True)
class Choice:
    """The strategy chosen for one site.

    costs, times: cost and seconds of every legal strategy; refused: the reason for each illegal
    one.
    fixed: the user asked for this strategy; measured: strategies timed on the device, not
    predicted.
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
        rivals = {name: seconds for name, seconds in self.times.items() if name != self.strategy}
        return min(rivals, key=rivals.__getitem__) if rivals else None

    def using(self, strategy: str, note: str = "") -> Choice:
        return replace(self, strategy=strategy, note=note or self.note)


@dataclass(frozen=True)
class Budget:
    """A limit of `memory` bytes. Without it the sites take `free_seconds`, the step `free_peak`
    bytes.
    """

    memory: int
    free_seconds: float
    free_peak: float


@dataclass(frozen=True)
class Recompute:
    """Forward `nodes` that run again in the backward, for `seconds` in all; this saves `bytes`."""

    nodes: tuple[str, ...]
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """One Choice per site, and what the step as a whole is predicted to take.

    whole: "naive" if the step runs one example at a time, else "graph".
    rows: examples of one compiled step.
    frame_seconds, peak: seconds of forward and backward, and bytes of the step. None unless they
    were traced: for a budget, for `physical_batch="auto"` or by `explain`.
    recompute: what the step computes twice to fit a budget (its seconds count in frame_seconds), or
    None.
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
        return {choice.site.name: choice.strategy for choice in self.choices}[site]

    @property
    def frame_rows(self) -> int:
        """Examples in memory at the same time."""
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
        """Returns the sites' seconds with `strategy` where it is legal, and this plan's choices
        elsewhere.
        """
        return sum(c.times.get(strategy, c.seconds) for c in self.choices)

    def __str__(self) -> str:
        from fxperex.report.explain import table

        return table(self)

    def _repr_html_(self) -> str:
        from fxperex.report.html import plan_html

        return plan_html(self)

    def to_json(self) -> str:
        """Returns the plan as JSON text; `Plan.from_json` reads it back, equal."""
        from fxperex.plan.serial import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Returns the Plan that `to_json` wrote. Raises ConfigError that says what is wrong with
        the text.
        """
        from fxperex.plan.serial import from_json

        return from_json(text)


def check_same(plan: Plan, sites: tuple[Site, ...]) -> None:
    """Raises ConfigError, naming the first node that differs, unless `plan` was made for
    `sites`.
    """
    planned_sites = tuple(choice.site for choice in plan.choices)
    for site, planned in zip(sites, planned_sites, strict=False):
        for field_name in ("name", "node", "op", "kind", "arg", "shape", "dtype", "params"):
            ours, theirs = getattr(site, field_name), getattr(planned, field_name)
            if ours != theirs:
                raise ConfigError(f"the plan was made for another model: node {site.node} "
                                  f"({site.name}, {site.where}) has {field_name} {ours} here, and "
                                  f"{theirs} in the plan (node {planned.node})")
    if len(sites) != len(planned_sites):
        longer = max(sites, planned_sites, key=len)
        extra = longer[min(len(sites), len(planned_sites))]
        side = "the plan does not have it" if longer is sites else "this model does not have it"
        raise ConfigError(f"the plan was made for another model: node {extra.node} "
                          f"({extra.name}): {side}")

