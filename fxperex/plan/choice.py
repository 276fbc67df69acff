"""The values that a plan is made of: the strategy of each site, and what a budget changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fxperex.costs import Cost, Work
from fxperex.errors import ConfigError
from fxperex.sites import Dims, Site


@dataclass(frozen=True)
class Choice:
    """The strategy chosen for one site.

    costs, times: the Cost and the seconds of every legal strategy.
    refused: for each illegal strategy, the reason.
    fixed: the user asked for this strategy.
    measured: the strategies that were timed on the device; the others are predicted.
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
    def runner_up(self) -> str | None:
        """The fastest other legal strategy."""
        rivals = {name: seconds for name, seconds in self.times.items() if name != self.strategy}
        return min(rivals, key=rivals.__getitem__) if rivals else None

    def using(self, strategy: str, note: str = "") -> Choice:
        """Returns this choice with another strategy; without `note` its own note stays."""
        return replace(self, strategy=strategy, note=note or self.note)

    def to_dict(self) -> dict[str, Any]:
        """Returns the choice in types that JSON has; `from_dict` reads it back, equal."""
        return {
            "site": _site_to_dict(self.site), "strategy": self.strategy, "note": self.note,
            "fixed": self.fixed, "measured": sorted(self.measured), "times": dict(self.times),
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "refused": dict(self.refused)}

    @staticmethod
    def from_dict(body: dict[str, Any]) -> Choice:
        """Returns the Choice that `to_dict` wrote. Raises ConfigError if its strategy has no cost;
        KeyError or TypeError if it is no choice.
        """
        site = _site_from_dict(body["site"])
        if body["strategy"] not in body["costs"] or set(body["costs"]) != set(body["times"]):
            raise ConfigError(f"the plan's strategy {body['strategy']!r} for {site.name} has no "
                              "cost in it")
        costs = {name: _cost_from_dict(cost) for name, cost in body["costs"].items()}
        return Choice(site, body["strategy"], costs, body["times"], body["refused"], body["note"],
                      body["fixed"], frozenset(body["measured"]))


@dataclass(frozen=True)
class Budget:
    """A limit of `memory` bytes.

    free_seconds, free_peak: what the sites would take, in seconds, and the step, in bytes, without
    the limit.
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


def _site_to_dict(site: Site) -> dict[str, Any]:
    parts = [_site_to_dict(part) for part in site.parts]
    return asdict(replace(site, parts=())) | {
        "dtype": str(site.dtype).removeprefix("torch."), "device": str(site.device), "parts": parts}


def _site_from_dict(body: dict[str, Any]) -> Site:
    parts = tuple(_site_from_dict(part) for part in body["parts"])
    dims = Dims(**body["dims"]) if body["dims"] else None
    return Site(**body | {
        "dtype": getattr(torch, body["dtype"]), "device": torch.device(body["device"]),
        "params": tuple(body["params"]), "shape": tuple(body["shape"]), "dims": dims,
        "parts": parts})


def _cost_from_dict(body: dict[str, Any]) -> Cost:
    work = tuple(Work(**item | {"shape": tuple(item["shape"])}) for item in body["work"])
    return Cost(**body | {"work": work})
