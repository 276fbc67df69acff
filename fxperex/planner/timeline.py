"""Peak bytes of a plan as one running sum: what `plan_peak` finds by walking the whole step, for the many plans of a search.

Every instruction of the frame has a slot; every site has one for a norm inside the backward and one behind that, should it be the
last of the small ones, for what those store, side by side; one for a norm behind the backward, and two for its sum; one more is
for what small sites store behind all norms. Buffers add their bytes at the slot that makes them and take them away behind their
last reader; only what sites add, and the buffers that they keep alive longer, differ between plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxperex.frame import Frame
from fxperex.liveness import raised
from fxperex.planner.memory import BESIDE, beside, beside_bytes, movable, norm_transient, sum_makes
from fxperex.planner.plan import Choice


@dataclass(frozen=True)
class _Sites:
    """What one assignment adds: a value per site in every tensor, bytes unless said otherwise."""

    rereads: Tensor  # bool
    beside: Tensor  # bool
    late: Tensor  # place among the norms behind the backward
    held: Tensor
    transient: Tensor
    moved: Tensor
    made: Tensor
    scratch: Tensor
    together: float  # what small sites store, side by side


class Timeline:
    """The slots of one frame and one list of sites."""

    def __init__(self, frame: Frame, choices: Sequence[Choice]) -> None:
        names = [c.site.name for c in choices if c.site.name in frame.reads]
        steps = frame.listing.instructions
        placed = sorted((frame.ready[name], i) for i, name in enumerate(names))
        # A norm is in front of the step at its place: behind so many steps, and behind the norms raised before it.
        early = {i: place + 2 * order for order, (place, i) in enumerate(placed)}
        behind, self.beside = len(steps) + 2 * len(names), len(steps) + 3 * len(names)
        self.index = {name: i for i, name in enumerate(names)}
        self.at = {slot: names[i] for i, slot in early.items()} | {slot + 1: BESIDE for slot in early.values()}
        self.early = _whole([early[i] for i in range(len(names))])
        self.behind = behind
        self.sums = _whole(range(self.beside + 1, self.beside + 1 + 2 * len(names), 2))
        self.slots = self.beside + 1 + 2 * len(names)
        taken = set(self.at)
        self.frame = frame
        self._lay_out([slot for slot in range(behind) if slot not in taken])

    def _lay_out(self, places: list[int]) -> None:
        """The frame's own buffers, its instructions at `places`, and the running sum without any site."""
        listing, reads = self.frame.listing, self.frame.reads
        steps = list(zip(places, listing.instructions, strict=True))
        ends = {b: slot for slot, s in steps for b in (*s.makes, *s.reads)}
        sizes = {b: size for s in listing.instructions for b, size in s.makes.items() if b not in listing.outputs}
        index = {b: i for i, b in enumerate(sizes)}
        # Which site reads which buffer.
        pairs = [(self.index[name], index[b]) for name in self.index for some in reads[name] for b in some if b in index]
        self.readers, self.read = _whole([site for site, _ in pairs]), _whole([b for _, b in pairs])
        self.ends, self.bytes = _whole([ends[b] for b in sizes]), _floats(list(sizes.values()))
        self.transients = _floats([0.0] * self.slots)
        self.transients[_whole(places)] = _floats([s.transient for _, s in steps])
        makes = [(slot, size) for slot, s in steps for size in s.makes.values()]
        made = _floats([0.0] * (self.slots + 1)).index_add(0, _whole([slot for slot, _ in makes]), _floats([b for _, b in makes]))
        self.changes = made.index_add(0, self.ends + 1, -self.bytes)

    def peak(self, choices: Sequence[Choice]) -> float:
        """Returns the bytes of `plan_peak(frame, choices)`, bit for bit where all sizes are whole numbers."""
        names, first = movable(self.frame, choices)
        sites = _sites([c for c in choices if c.site.name in self.index])
        return self.frame.listing.inputs + raised(names, first, lambda some: self._worst(sites, some))[1]

    def floor(self) -> float:
        """Returns bytes that no plan without recomputing is below: forward and backward alone."""
        return self.frame.listing.inputs + float((self.changes.cumsum(0)[:-1] + self.transients).max())

    def _worst(self, sites: _Sites, early: Sequence[str]) -> tuple[float, str]:
        norm = sites.late + self.behind
        up = _whole([self.index[name] for name in early if name != BESIDE])
        norm[up] = self.early[up]
        copied = self.beside
        if BESIDE in early and bool((norm[sites.beside] < self.behind).all()):
            copied = int(norm[sites.beside].max()) + 1
        last = torch.where(sites.beside, copied, self.sums).where(~sites.rereads, norm)
        ends = self.ends.scatter_reduce(0, self.read, self.sums.where(sites.rereads, norm)[self.readers], "amax")
        longer = ends > self.ends
        where = [norm, last + 1, self.sums, self.sums + 2, self.sums + 1, self.ends[longer] + 1, ends[longer] + 1]
        what = [sites.held, -sites.held, sites.moved, -sites.moved, sites.made, self.bytes[longer], -self.bytes[longer]]
        if sites.together:
            where.append(torch.stack([_whole(copied), self.sums[sites.beside].max() + 1]))
            what.append(_floats([sites.together, -sites.together]))
        transients = self.transients.clone()
        transients[norm], transients[self.sums + 1] = sites.transient, sites.scratch
        worst, slot = (self.changes.index_add(0, torch.cat(where), torch.cat(what)).cumsum(0)[:-1] + transients).max(0)
        return float(worst), self.at.get(int(slot), "")


def _sites(choices: Sequence[Choice]) -> _Sites:
    flags = [(c.cost.rereads, beside(c)) for c in choices]
    bytes_ = _floats([(c.cost.held, norm_transient(c), *sum_makes(c)) for c in choices]).reshape(-1, 5)
    rereads, small = torch.tensor(flags, dtype=torch.bool, device="cpu").reshape(-1, 2).unbind(1)
    held, transient, moved, made, scratch = bytes_.unbind(1)
    late = small.argsort(stable=True).argsort()
    return _Sites(rereads, small, late, held, transient, moved, made, scratch, beside_bytes(choices))


def _whole(values: int | Sequence[int]) -> Tensor:
    return torch.tensor(values if isinstance(values, int) else list(values), dtype=torch.long, device="cpu")


def _floats(values: Sequence[float] | Sequence[tuple[float, ...]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")
