"""Whether a ready-made plan fits a model: the same sites, with the same shapes."""

from __future__ import annotations

from fxperex.errors import ConfigError
from fxperex.plan.plan import Plan
from fxperex.sites import Site

COMPARED = ("name", "node", "op", "kind", "arg", "shape", "dtype", "params")


def check_same(plan: Plan, sites: tuple[Site, ...]) -> None:
    """Raises ConfigError unless `plan` was made for `sites`; it names the first node that
    differs.
    """
    planned_sites = tuple(choice.site for choice in plan.choices)
    for site, planned in zip(sites, planned_sites, strict=False):
        for field_name in COMPARED:
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
