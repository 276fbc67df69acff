"""One site's candidates: which strategies are legal, what each costs, and which is cheapest."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fxperex.analysis.sites import Analysis
from fxperex.devices import Profile
from fxperex.errors import ConfigError
from fxperex.planner.plan import Choice
from fxperex.registry import Cost, Site, strategies
from fxperex.work import grads_bytes

WORDS = ("auto", "measure")  # what `strategy` may be beside a strategy's name


def forced(analysis: Analysis, strategy: str | Mapping[str, str]) -> dict[str, str]:
    """Returns {site: strategy} of the globs. Raises ConfigError for unknown names and globs that match nothing."""
    known = strategies()
    for name in [strategy] if isinstance(strategy, str) else list(strategy.values()):
        if name not in known and name not in WORDS:
            raise ConfigError(f"unknown strategy {name!r}; valid: {', '.join((*WORDS, *known))}")
    if isinstance(strategy, str):
        return {}
    made: dict[str, str] = {}
    for glob, name in strategy.items():
        matches = [s for s in analysis.sites if any(fnmatch.fnmatchcase(p, glob) for p in s.params)]
        if not matches:
            some = ", ".join(sorted({p for s in analysis.sites for p in s.params})[:6])
            raise ConfigError(f"strategy glob {glob!r} matches no trainable parameter; there are: {some}, ...")
        made |= {s.name: name for s in matches}
    return {k: v for k, v in made.items() if v not in WORDS}


def choose(site: Site, profile: Profile, group: tuple[Site, ...], wanted: str | None, whole: str) -> Choice:
    """Returns the Choice for `site`: `wanted` if given, else `whole` where it is legal, else the cheapest.

    `group`: the sites that share its parameters. Raises ConfigError if `wanted` is illegal here.
    """
    costs: dict[str, Cost] = {}
    refused: dict[str, str] = {}
    for name, candidate in strategies().items():
        reason = _reason(candidate, site)
        if reason is None:
            costs[name] = candidate.cost(site) if site.direct_norm else _added(candidate.cost(site), site, group)
        else:
            refused[name] = reason
    if wanted is not None and wanted not in costs:
        raise ConfigError(f"strategy {wanted!r} is illegal for {site.name} ({site.kind}, {site.where}): "
                          f"{refused[wanted]}. Legal: {', '.join(costs)}")
    times = {k: profile.seconds(c) for k, c in costs.items()}
    name = wanted or (whole if whole in costs else min(times, key=times.__getitem__))
    note = f"not {whole}: {refused[whole]}" if whole in refused and whole != "naive" else ""
    return Choice(site, name, costs, times, refused, note, fixed=wanted is not None or whole in costs)


def naive(site: Site, profile: Profile) -> Choice:
    """Returns the Choice of a step that runs one example at a time; `site` has one row."""
    cost = strategies()["naive"].cost(site)
    return Choice(site, "naive", {"naive": cost}, {"naive": profile.seconds(cost)}, fixed=True)


def _reason(candidate: Any, site: Site) -> str | None:
    reason = candidate.illegal(site)
    if reason is None and not site.direct_norm and not candidate.stores:
        return "the parameter has several uses (or a pull-back that changes norms): its gradients must be added first"
    return reason


def _added(cost: Cost, site: Site, group: tuple[Site, ...]) -> Cost:
    """Cost of a site whose gradients are pulled back to the parameters and added to those of its group.

    The site's own gradients live only until they are pulled back; what is kept is one gradient per parameter of the
    group, counted at its largest site, and read and written once more for every use.
    """
    grads = grads_bytes(site)
    kept = grads if site == max(group, key=lambda s: (s.size, s.name)) else 0.0
    return replace(cost, held=kept, transient=cost.transient + sum(grads_bytes(s) for s in group),
                   bytes=cost.bytes + 4 * grads, launches=cost.launches + 4)
