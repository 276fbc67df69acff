"""Plan <-> JSON. A plan's text says for which nodes it was made, so that a foreign one can be refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import torch

from fxperex.errors import ConfigError
from fxperex.planner.plan import Budget, Choice, Plan, Recompute
from fxperex.registry import Cost, Dims, Site, Work

VERSION = 3


def to_json(plan: Plan) -> str:
    """Returns the text of `plan`."""
    body: dict[str, Any] = {"version": VERSION, "whole": plan.whole, "rows": plan.rows, "device": plan.device,
                            "frame_seconds": plan.frame_seconds, "peak": plan.peak,
                            "budget": asdict(plan.budget) if plan.budget else None,
                            "recompute": asdict(plan.recompute) if plan.recompute else None,
                            "unused": list(plan.unused), "frozen": list(plan.frozen),
                            "sites": [_choice(c) for c in plan.choices]}
    return json.dumps(body, indent=1) + "\n"


def _choice(choice: Choice) -> dict[str, Any]:
    return {"site": _site(choice.site), "strategy": choice.strategy, "note": choice.note, "fixed": choice.fixed,
            "measured": sorted(choice.measured), "times": dict(choice.times),
            "costs": {k: asdict(c) for k, c in choice.costs.items()}, "refused": dict(choice.refused)}


def _site(site: Site) -> dict[str, Any]:
    flat = asdict(replace(site, parts=()))
    return flat | {"dtype": str(site.dtype).removeprefix("torch."), "device": str(site.device),
                   "parts": [_site(part) for part in site.parts]}


def from_json(text: str) -> Plan:
    """Returns the Plan of `text`. Raises ConfigError."""
    try:
        found = json.loads(text)
        if found["version"] != VERSION:
            raise ConfigError(f"the plan has version {found['version']!r}; this library reads {VERSION}")
        budget = Budget(**found["budget"]) if found["budget"] else None
        again = Recompute(**found["recompute"] | {"nodes": tuple(found["recompute"]["nodes"])}) if found["recompute"] else None
        return Plan(tuple(_read(c) for c in found["sites"]), str(found["whole"]), int(found["rows"]), str(found["device"]),
                    tuple(found["unused"]), tuple(found["frozen"]), budget, found["frame_seconds"], found["peak"],
                    again)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"this is not a plan written by Plan.to_json ({type(error).__name__}: {error})") from error


def _read(found: dict[str, Any]) -> Choice:
    site = _read_site(found["site"])
    if found["strategy"] not in found["costs"] or set(found["costs"]) != set(found["times"]):
        raise ConfigError(f"the plan's strategy {found['strategy']!r} for {site.name} has no cost in it")
    costs = {k: Cost(**c | {"work": tuple(Work(**w | {"shape": tuple(w["shape"])}) for w in c["work"])})
             for k, c in found["costs"].items()}
    return Choice(site, found["strategy"], costs, found["times"], found["refused"], found["note"], found["fixed"],
                  frozenset(found["measured"]))


def _read_site(given: dict[str, Any]) -> Site:
    return Site(**given | {"dtype": getattr(torch, given["dtype"]), "device": torch.device(given["device"]),
                           "params": tuple(given["params"]), "shape": tuple(given["shape"]),
                           "dims": Dims(**given["dims"]) if given["dims"] else None,
                           "parts": tuple(_read_site(part) for part in given["parts"])})
