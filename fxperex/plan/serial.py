"""Plan <-> JSON. A plan's text says for which nodes it was made, so that a foreign one can be
refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import torch

from fxperex.costs import Cost, Work
from fxperex.errors import ConfigError
from fxperex.plan.plan import Budget, Choice, Plan, Recompute
from fxperex.sites import Dims, Site

VERSION = 3


def to_json(plan: Plan) -> str:
    """Returns the text of `plan`."""
    body: dict[str, Any] = {
        "version": VERSION, "whole": plan.whole, "rows": plan.rows, "device": plan.device,
        "frame_seconds": plan.frame_seconds, "peak": plan.peak,
        "budget": asdict(plan.budget) if plan.budget else None,
        "recompute": asdict(plan.recompute) if plan.recompute else None,
        "unused": list(plan.unused), "frozen": list(plan.frozen),
        "sites": [_choice(c) for c in plan.choices]
    }
    return json.dumps(body, indent=1) + "\n"


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "site": _site(choice.site), "strategy": choice.strategy, "note": choice.note,
        "fixed": choice.fixed, "measured": sorted(choice.measured), "times": dict(choice.times),
        "costs": {k: asdict(c)
                  for k, c in choice.costs.items()}, "refused": dict(choice.refused)
    }


def _site(site: Site) -> dict[str, Any]:
    flat = asdict(replace(site, parts=()))
    return flat | {"dtype": str(site.dtype).removeprefix("torch."), "device": str(site.device),
                   "parts": [_site(part) for part in site.parts]}


def from_json(text: str) -> Plan:
    """Returns the Plan of `text`. Raises ConfigError."""
    try:
        body = json.loads(text)
        if body["version"] != VERSION:
            raise ConfigError(f"the plan has version {body['version']!r}; this library reads "
                              f"{VERSION}")
        budget = Budget(**body["budget"]) if body["budget"] else None
        recompute = body["recompute"] and Recompute(**body["recompute"]
                                                    | {"nodes": tuple(body["recompute"]["nodes"])})
        return Plan(tuple(_read(choice) for choice in body["sites"]), str(body["whole"]),
                    int(body["rows"]), str(body["device"]), tuple(body["unused"]),
                    tuple(body["frozen"]), budget, body["frame_seconds"], body["peak"], recompute)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"this is not a plan written by Plan.to_json ({type(error).__name__}: "
                          f"{error})") from error


def _read(body: dict[str, Any]) -> Choice:
    site = _read_site(body["site"])
    if body["strategy"] not in body["costs"] or set(body["costs"]) != set(body["times"]):
        raise ConfigError(f"the plan's strategy {body['strategy']!r} for {site.name} has no cost "
                          "in it")
    costs = {name: _read_cost(cost) for name, cost in body["costs"].items()}
    return Choice(site, body["strategy"], costs, body["times"], body["refused"], body["note"],
                  body["fixed"], frozenset(body["measured"]))


def _read_cost(body: dict[str, Any]) -> Cost:
    return Cost(
        **body
        | {"work": tuple(Work(**work | {"shape": tuple(work["shape"])}) for work in body["work"])})


def _read_site(body: dict[str, Any]) -> Site:
    return Site(
        **body | {
            "dtype": getattr(torch, body["dtype"]), "device": torch.device(body["device"]),
            "params": tuple(body["params"]), "shape": tuple(body["shape"]), "dims": Dims(
                **body["dims"]) if body["dims"] else None, "parts": tuple(
                    _read_site(part) for part in body["parts"])
        })
