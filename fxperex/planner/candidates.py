"""One site's candidates: which strategies are legal, what each costs, and which is cheapest."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace

from fxperex.analysis.sites import Analysis
from fxperex.contract import Strategy
from fxperex.cost_model.sizes import grads_bytes
from fxperex.costs import Cost
from fxperex.devices import Profile
from fxperex.errors import ConfigError, CoverageError, FxperexError
from fxperex.plan.choice import Choice
from fxperex.registry import NAIVE, WORDS, strategies, ways
from fxperex.sites import Site


def forced(analysis: Analysis, strategy: str | Mapping[str, str]) -> dict[str, str]:
    """Returns {site: strategy} of the globs. Raises ConfigError for an unknown name and for a glob
    that matches no trainable parameter.
    """
    for name in [strategy] if isinstance(strategy, str) else list(strategy.values()):
        if name not in ways() and name not in WORDS:
            raise ConfigError(f"unknown strategy {name!r}; valid: {', '.join((*WORDS, *ways()))}")
    if isinstance(strategy, str):
        return {}
    by_site: dict[str, str] = {}
    for glob, name in strategy.items():
        if name == NAIVE:
            raise ConfigError(f"strategy glob {glob!r}: {NAIVE} runs the whole step one example at "
                              "a time; it is not a node's choice. Pass strategy=\"naive\" instead")
        matches = [s for s in analysis.sites if any(fnmatch.fnmatchcase(p, glob) for p in s.params)]
        if not matches:
            names = ", ".join(sorted({p for s in analysis.sites for p in s.params})[:6])
            raise ConfigError(f"strategy glob {glob!r} matches no trainable parameter; there are: "
                              f"{names}, ...")
        by_site |= {site.name: name for site in matches}
    return {site: name for site, name in by_site.items() if name not in WORDS}


def choose(site: Site, profile: Profile, group: tuple[Site, ...], required: str | None,
           preferred: str) -> Choice:
    """Returns the Choice for `site`: `required`, else `preferred` if legal, else the cheapest.

    group: the sites that share its parameters. Raises ConfigError if `required` is illegal here.
    """
    costs: dict[str, Cost] = {}
    refused: dict[str, str] = {}
    for name, candidate in strategies().items():
        answer = _priced(candidate, site)
        if isinstance(answer, Cost):
            costs[name] = answer if site.direct_norm else _added(answer, site, group)
        else:
            refused[name] = answer
    if required is not None and required not in costs:
        raise ConfigError(f"strategy {required!r} is illegal for {site.name} ({site.kind}, "
                          f"{site.where}): {refused[required]}. Legal: {', '.join(costs)}")
    if not costs:
        raise CoverageError(f"no strategy serves {site.name} ({site.op}, {site.where}): "
                            + "; ".join(f"{name}: {why}" for name, why in refused.items()))
    times = {name: profile.seconds(cost) for name, cost in costs.items()}
    chosen = required or (preferred if preferred in costs else min(times, key=times.__getitem__))
    declined = preferred in refused
    note = f"not {preferred}: {refused[preferred]}" if declined else ""
    fixed = required is not None or preferred in costs
    return Choice(site, chosen, costs, times, refused, note, fixed)


def naive(site: Site, profile: Profile) -> Choice:
    """Returns the Choice of a step that runs one example at a time; `site` has one row."""
    # An ordinary backward for one row is what `multi` does for each, and keeps nothing.
    cost = replace(strategies()["multi"].cost(site), held=0.0,
                   transient=grads_bytes(site) / site.rows)
    return Choice(site, NAIVE, {NAIVE: cost}, {NAIVE: profile.seconds(cost)}, fixed=True)


def _priced(candidate: Strategy, site: Site) -> Cost | str:
    """Returns the cost of the strategy at `site`, or the reason why it cannot serve it."""
    try:
        reason = _reason(candidate, site)
        return candidate.cost(site) if reason is None else reason
    except FxperexError:
        raise
    except Exception as error:  # a user's strategy may raise anything
        raise ConfigError(f"strategy {candidate.name!r} failed to say whether it serves "
                          f"{site.name} ({site.op} of kind {site.kind}, {site.where}) and at what "
                          f"cost: {type(error).__name__}: {error}") from error


def _reason(candidate: Strategy, site: Site) -> str | None:
    reason = candidate.illegal(site)
    if reason is None and not site.direct_norm and not candidate.stores:
        return ("the parameter has several uses (or a pull-back that changes norms): its "
                "gradients must be added first")
    return reason


def _added(cost: Cost, site: Site, group: tuple[Site, ...]) -> Cost:
    """Returns the cost of a site whose gradients are pulled back to the parameters and added up.

    The site's own gradients live until they are pulled back. One gradient per parameter of the
    group is held, counted at the group's largest site. Each use reads and writes it once more.
    """
    grads = grads_bytes(site)
    is_largest = site == max(group, key=lambda member: (member.size, member.name))
    transient = cost.transient + sum(grads_bytes(member) for member in group)
    return replace(cost, held=grads if is_largest else 0.0, transient=transient,
                   bytes=cost.bytes + 4 * grads, launches=cost.launches + 4)
