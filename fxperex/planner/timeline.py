"""Peak bytes of a plan as one running sum: what `plan_peak` finds by walking the whole step, for the many plans of a search.

Every instruction of the frame has a slot; every site has one for a norm inside the backward, one for a norm behind it, and two
for its sum; one more is for what small sites store, side by side. Buffers add their bytes at the slot that makes them and take
them away behind their last reader; only what sites add, and the buffers that they keep alive longer, differ between plans.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fxperex.frame import Frame
from fxperex.planner.memory import beside, beside_bytes, norm_transient, orders, sum_makes
from fxperex.planner.plan import Choice


class Timeline:
    """The slots of one frame and one list of sites."""

    def __init__(self, frame: Frame, choices: Sequence[Choice]) -> None:
        names = [c.site.name for c in choices if c.site.name in frame.reads]
        steps = frame.listing.instructions
        raised = sorted((frame.ready[name], i) for i, name in enumerate(names))
        # A norm is in front of the step at its place: behind so many steps, and behind the norms raised before it.
        self.early = {names[i]: place + order for order, (place, i) in enumerate(raised)}
        behind, self.beside = len(steps) + len(names), len(steps) + 2 * len(names)
        self.late = {name: behind + i for i, name in enumerate(names)}
        self.sums = {name: self.beside + 1 + 2 * i for i, name in enumerate(names)}
        self.slots = self.beside + 1 + 2 * len(names)
        taken = set(self.early.values())
        self.places = [slot for slot in range(behind) if slot not in taken]
        self.frame = frame
        self._lay_out()

    def _lay_out(self) -> None:
        """The frame's own buffers: where each ends, its bytes, and the running sum without any site."""
        listing = self.frame.listing
        self.ends = {b: slot for slot, s in zip(self.places, listing.instructions, strict=True) for b in (*s.makes, *s.reads)}
        self.bytes: dict[str, float] = {}
        self.changes = torch.zeros(self.slots + 1, dtype=torch.float64, device="cpu")
        self.transients = torch.zeros(self.slots, dtype=torch.float64, device="cpu")
        for slot, step in zip(self.places, listing.instructions, strict=True):
            self.transients[slot] = step.transient
            for name, size in step.makes.items():
                self.changes[slot] += size
                if name not in listing.outputs:
                    self.bytes[name] = size
                    self.changes[self.ends[name] + 1] -= size

    def peak(self, choices: Sequence[Choice]) -> float:
        """Returns the bytes of `plan_peak(frame, choices)`, bit for bit where all sizes are whole numbers."""
        live = [c for c in choices if c.site.name in self.frame.reads]
        return self.frame.listing.inputs + min(self._worst(live, early) for early in orders(choices))

    def floor(self) -> float:
        """Returns bytes that no plan without recomputing is below: forward and backward alone."""
        return self.frame.listing.inputs + float((self.changes.cumsum(0)[:-1] + self.transients).max())

    def _worst(self, live: Sequence[Choice], early: Collection[str]) -> float:
        slots: list[int] = []
        added: list[float] = []
        ends: dict[str, int] = {}
        transients = self.transients.clone()
        for c in live:
            name, cost = c.site.name, c.cost
            norm, scaled = (self.early if name in early else self.late)[name], self.sums[name]
            inputs, grads = self.frame.reads[name]
            for b in inputs + grads:
                ends[b] = max(ends.get(b, 0), scaled if cost.rereads else norm)
            moved, made, scratch = sum_makes(c)
            last = norm if cost.rereads else self.beside if beside(c) else scaled
            slots += [norm, last + 1, scaled, scaled + 2, scaled + 1]
            added += [cost.held, -cost.held, moved, -moved, made]
            transients[norm], transients[scaled + 1] = norm_transient(c), scratch
        if together := [c for c in live if beside(c)]:
            slots += [self.beside, self.sums[together[-1].site.name] + 1]
            added += [beside_bytes(live), -beside_bytes(live)]
        for b, end in ends.items():
            if b in self.bytes and end > self.ends[b]:
                slots += [self.ends[b] + 1, end + 1]
                added += [self.bytes[b], -self.bytes[b]]
        return float((_sum(self.changes, slots, added).cumsum(0)[:-1] + transients).max())


def _sum(changes: Tensor, slots: list[int], added: list[float]) -> Tensor:
    where = torch.tensor(slots, dtype=torch.long, device="cpu")
    return changes.index_add(0, where, torch.tensor(added, dtype=torch.float64, device="cpu"))
