"""Plan: one Choice per site, what the step is predicted to take, and what each alternative would
take.

A plan is frozen. It prints as a table, and goes to JSON and back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from fxperex.errors import ConfigError
from fxperex.plan.byte_sizes import size
from fxperex.plan.choice import Budget, Choice, Recompute
from fxperex.plan.table import HEAD, aligned, row

VERSION = 4  # of the JSON


@dataclass(frozen=True)
class Plan:
    """One Choice per site, and what the step as a whole is predicted to take.

    mode: "naive" if the step runs one example at a time, else "graph".
    rows: examples of one compiled step.
    unused, frozen: parameters that no site trains.
    frame_seconds, peak: seconds of forward and backward, and bytes of the step. None unless they
    were traced: for a budget, for `physical_batch="auto"` or by `explain`.
    recompute: what the step computes twice to fit a budget (its seconds count in frame_seconds), or
    None.
    unmeasured: {kernel that the device's profile has no rate of: the kernel whose rate it has}.
    """

    choices: tuple[Choice, ...]
    mode: str
    rows: int
    device: str
    unused: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    budget: Budget | None = None
    frame_seconds: float | None = None
    peak: float | None = None
    recompute: Recompute | None = None
    unmeasured: Mapping[str, str] = field(default_factory=dict)

    @property
    def frame_rows(self) -> int:
        """Examples in memory at the same time."""
        return 1 if self.mode == "naive" else self.rows

    @property
    def turns(self) -> int:
        """Runs of the step graph for `rows` examples."""
        return self.rows if self.mode == "naive" else 1

    @property
    def seconds(self) -> float:
        """Predicted seconds of the sites, without forward and backward."""
        return self.turns * sum(c.seconds for c in self.choices)

    @property
    def held(self) -> float:
        """Bytes that strategies keep until the clip factors are known."""
        return sum(c.cost.held for c in self.choices)

    def single(self, strategy: str) -> float:
        """Returns the sites' seconds with `strategy` at every site that allows it; other sites keep
        their choice.
        """
        return sum(c.times.get(strategy, c.seconds) for c in self.choices)

    def __str__(self) -> str:
        rows = [row(choice) for choice in self.choices]
        return "\n".join([*aligned(HEAD, rows), *self.totals(), *self.notes()])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def totals(self) -> list[str]:
        """Returns the lines on time and memory of the step."""
        lines = self._time_and_memory()
        if self.budget is not None:
            added = self.recompute.seconds if self.recompute else 0.0
            cost = 1e3 * (self.seconds + added - self.budget.free_seconds)
            lines.append(f"budget {size(self.budget.memory)} cost {cost:.2f} ms; without it the "
                         f"peak would be {size(self.budget.free_peak)}")
        if self.recompute is not None:
            repeated = self.recompute
            lines.append(f"recomputed: {len(repeated.nodes)} values of the forward, "
                         f"{size(repeated.bytes)} not kept, for {1e3 * repeated.seconds:.2f} ms, "
                         "counted in forward and backward")
        if any(c.strategy in c.measured for c in self.choices):
            lines.append("* measured on the device")
        return [*lines, *(f"the kernel {kernel!r} was never measured on this device: it is priced "
                          f"like {source!r}, which may be wrong by a factor of 2; `fxperex "
                          "calibrate` measures it" for kernel, source in self.unmeasured.items())]

    def notes(self) -> list[str]:
        """Returns a line for each unused parameter, and for each choice that has a note."""
        return [*(f"unused (gradient zero): {name}" for name in self.unused),
                *(f"{c.site.name}: {c.note}" for c in self.choices if c.note)]

    def _time_and_memory(self) -> list[str]:
        naive = ", one example at a time (naive)"
        how = f"{self.rows} rows{naive if self.mode == 'naive' else ' per compiled step'}"
        sites = f"sites {1e3 * self.seconds:.2f} ms"
        if self.frame_seconds is None:
            return [f"total {sites} predicted beside forward and backward, {size(self.held)} held; "
                    f"{how}; costs for {self.device}"]
        total = 1e3 * (self.seconds + self.frame_seconds)
        return [f"total {total:.2f} ms predicted: {sites}, forward and backward "
                f"{1e3 * self.frame_seconds:.2f} ms; {how}",
                f"peak memory {size(self.peak or 0)}, of which strategies hold {size(self.held)}; "
                f"costs for {self.device}"]

    def to_json(self) -> str:
        """Returns the plan as JSON text; `Plan.from_json` reads it back, equal.

        It describes the nodes that it was made for, so that a plan of another model is refused.
        """
        body: dict[str, Any] = {
            "version": VERSION, "mode": self.mode, "rows": self.rows, "device": self.device,
            "frame_seconds": self.frame_seconds, "peak": self.peak,
            "budget": asdict(self.budget) if self.budget else None,
            "recompute": asdict(self.recompute) if self.recompute else None,
            "unused": list(self.unused), "frozen": list(self.frozen),
            "unmeasured": dict(self.unmeasured),
            "sites": [choice.to_dict() for choice in self.choices]}
        return json.dumps(body, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """Returns the Plan that `to_json` wrote. Raises ConfigError that says what is wrong with
        the text.
        """
        try:
            return _from_dict(json.loads(text))
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError("this is not a plan written by Plan.to_json "
                              f"({type(error).__name__}: {error})") from error


def _from_dict(body: dict[str, Any]) -> Plan:
    if body["version"] != VERSION:
        raise ConfigError(f"the plan has version {body['version']!r}; this library reads {VERSION}")
    budget, recompute = body["budget"], body["recompute"]
    if recompute:
        recompute = Recompute(**recompute | {"nodes": tuple(recompute["nodes"])})
    return Plan(
        tuple(Choice.from_dict(choice) for choice in body["sites"]), str(body["mode"]),
        int(body["rows"]), str(body["device"]), tuple(body["unused"]), tuple(body["frozen"]),
        Budget(**budget) if budget else None, body["frame_seconds"], body["peak"], recompute,
        dict(body.get("unmeasured", {})))
