"""Analysis + device profile -> Plan: the cheapest legal strategy for every site, and why not the others."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxperex.analysis.sites import Analysis
from fxperex.devices import Profile
from fxperex.errors import ConfigError
from fxperex.registry import Cost, Site, strategies


@dataclass(frozen=True)
class Choice:
    """One site's decision. `rejected`: strategy -> reason it is illegal, or its predicted seconds."""

    site: Site
    strategy: str
    seconds: float
    cost: Cost
    rejected: Mapping[str, str | float]
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """`choices` by site; `whole` is "naive" where the step runs one example at a time, else "graph"."""

    choices: tuple[Choice, ...]
    whole: str
    rows: int
    device: str
    unused: tuple[str, ...] = ()

    def strategy_of(self, site: str) -> str:
        return next(c.strategy for c in self.choices if c.site.name == site)

    @property
    def seconds(self) -> float:
        return sum(c.seconds for c in self.choices)

    @property
    def held(self) -> float:
        """Bytes that strategies keep until the clip factors are known."""
        return sum(c.cost.held for c in self.choices)

    def __str__(self) -> str:
        from fxperex.report.explain import table

        return table(self)


def make_plan(analysis: Analysis, profile: Profile, rows: int, strategy: str | Mapping[str, str],
              memory: int | None = None) -> Plan:
    """Returns the Plan. Raises ConfigError for unknown names, globs without match, illegal or unaffordable choices."""
    known = strategies()
    forced = _forced(analysis, strategy, known)
    tied = {s.name for group in analysis.groups for s in group if not s.direct_norm}
    choices = [_choose(site, profile, known, forced.get(site.name), strategy, site.name in tied)
               for site in analysis.sites]
    plan = Plan(tuple(choices), "naive" if strategy == "naive" else "graph", rows, profile.device, analysis.unused)
    return plan if memory is None else _fit(plan, memory, profile, known, tied, forced)


def _forced(analysis: Analysis, strategy: str | Mapping[str, str], known: dict[str, Any]) -> dict[str, str]:
    names = [strategy] if isinstance(strategy, str) else list(strategy.values())
    for name in names:
        if name not in known and name != "auto":
            raise ConfigError(f"unknown strategy {name!r}; valid: auto, {', '.join(known)}")
    if isinstance(strategy, str):
        return {}
    forced: dict[str, str] = {}
    for glob, name in strategy.items():
        matches = [s for s in analysis.sites if any(fnmatch.fnmatchcase(p, glob) for p in s.params)]
        if not matches:
            some = ", ".join(sorted({p for s in analysis.sites for p in s.params})[:6])
            raise ConfigError(f"strategy glob {glob!r} matches no trainable parameter; there are: {some}, ...")
        forced |= {s.name: name for s in matches}
    return {k: v for k, v in forced.items() if v != "auto"}


def _reason(strategy: Any, site: Site, tied: bool) -> str | None:
    reason = strategy.illegal(site)
    if reason is None and tied and not strategy.stores:
        return "the parameter has several uses (or a pull-back that changes norms): its gradients must be added first"
    return reason


def _choose(site: Site, profile: Profile, known: dict[str, Any], forced: str | None,
            whole: str | Mapping[str, str], tied: bool) -> Choice:
    rejected: dict[str, str | float] = {}
    costs: dict[str, Cost] = {}
    for name, candidate in known.items():
        reason = _reason(candidate, site, tied)
        if reason is not None:
            rejected[name] = reason
        else:
            costs[name] = candidate.cost(site)
            rejected[name] = _seconds(costs[name], profile)
    if forced is not None and forced not in costs:
        raise ConfigError(f"strategy {forced!r} is illegal for {site.name} ({site.kind}, {site.where}): "
                          f"{rejected[forced]}. Legal: {', '.join(costs)}")
    wanted = forced or (whole if isinstance(whole, str) and whole in costs else None)
    name = wanted or min(costs, key=lambda n: _seconds(costs[n], profile))
    note = ""
    if isinstance(whole, str) and whole not in {"auto", "naive", name}:
        note = f"not {whole}: {rejected[whole]}"
    seconds = _seconds(costs[name], profile)
    del rejected[name]
    return Choice(site, name, seconds, costs[name], rejected, note)


def _seconds(cost: Cost, profile: Profile) -> float:
    return profile.seconds(dict(cost.work), cost.bytes, cost.launches)


def _fit(plan: Plan, memory: int, profile: Profile, known: dict[str, Any], tied: set[str],
         forced: dict[str, str]) -> Plan:
    """Trades stored gradients for time, best bytes per second first, until `memory` holds them."""
    from dataclasses import replace

    choices = {c.site.name: c for c in plan.choices}
    while sum(c.cost.held for c in choices.values()) > memory:
        moves = []
        for c in choices.values():
            for name, seconds in c.rejected.items():
                if isinstance(seconds, str) or c.site.name in forced:
                    continue
                cost = known[name].cost(c.site)
                if cost.held < c.cost.held:
                    moves.append(((seconds - c.seconds) / (c.cost.held - cost.held), c.site.name, name, cost))
        if not moves:
            least = sum(c.cost.held for c in choices.values())
            worst = max(choices.values(), key=lambda c: c.cost.held)
            raise ConfigError(f"memory={memory} bytes cannot hold any plan: the smallest keeps {least:.0f} bytes, most of "
                              f"it for {worst.site.name} ({worst.strategy}). Raise memory or lower physical_batch")
        _, site, name, cost = min(moves)
        c = choices[site]
        rejected = {k: v for k, v in c.rejected.items() if k != name} | {c.strategy: c.seconds}
        choices[site] = replace(c, strategy=name, seconds=_seconds(cost, profile), cost=cost, rejected=rejected)
    return replace(plan, choices=tuple(choices[c.site.name] for c in plan.choices))


def parse_memory(memory: int | str | None) -> int | None:
    """Returns bytes of `"16GiB"`, `"500MB"` or a number. Raises ConfigError."""
    if memory is None:
        return None
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(memory))
    try:
        size = int(float(match[1]) * units[match[2].upper()]) if match else 0
    except (KeyError, ValueError):
        size = 0
    if size <= 0 or isinstance(memory, bool):
        raise ConfigError(f"memory must be a number of bytes above 0 or a size such as '16GiB'; got {memory!r}")
    return size
