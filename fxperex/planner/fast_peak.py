"""Peak bytes of a plan as one running sum: what `plan_peak` returns, fast enough for a search.

The step is a row of slots, in this order:

| slot | who has one |
|---|---|
| an instruction of the frame | every instruction |
| a norm inside the backward | every site, before the instruction at its place |
| the bundle of small sites | every site, right after its norm; used after the last small norm |
| a norm after the backward | every site |
| the bundle after all norms | one for the step |
| the scaled copies, then the sum | every site |

A buffer adds its bytes at the slot that makes it, and removes them after its last reader. Plans
differ only in what their sites add, and in the buffers that sites keep alive longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxperex.memory.liveness import raised
from fxperex.plan.choice import Choice
from fxperex.planner.memory import BUNDLE, bundle_bytes, bundled, movable, norm_transient, sum_makes
from fxperex.rewrite.frame import Frame


@dataclass(frozen=True)
class _Sites:
    """What one assignment adds. Each tensor has one value per site, in bytes unless noted."""

    rereads: Tensor  # bool
    bundled: Tensor  # bool
    late: Tensor  # place among the norms after the backward
    held: Tensor
    transient: Tensor
    copies: Tensor
    result: Tensor
    scratch: Tensor
    bundle: float  # bytes of the bundle of small sites


class Timeline:
    """The slots of one frame and one list of sites."""

    def __init__(self, frame: Frame, choices: Sequence[Choice]) -> None:
        names = [c.site.name for c in choices if c.site.name in frame.reads]
        steps = frame.listing.instructions
        placed = sorted((frame.ready[name], i) for i, name in enumerate(names))
        # Each norm and bundle inside the backward shifts the slots after it by two.
        early = {i: place + 2 * order for order, (place, i) in enumerate(placed)}
        after_backward = len(steps) + 2 * len(names)
        self.index = {name: i for i, name in enumerate(names)}
        self.owner = {slot: names[i] for i, slot in early.items()}
        self.owner |= {slot + 1: BUNDLE for slot in early.values()}
        self.early = _integers([early[i] for i in range(len(names))])
        self.after_backward = after_backward
        self.bundle_slot = after_backward + len(names)
        self.sums = _integers(range(self.bundle_slot + 1, self.bundle_slot + 1 + 2 * len(names), 2))
        self.slots = self.bundle_slot + 1 + 2 * len(names)
        self.frame = frame
        self._lay_out([slot for slot in range(after_backward) if slot not in self.owner])

    def _lay_out(self, places: list[int]) -> None:
        """Lays out the frame's buffers, with its instructions at `places`, and their sum."""
        listing, reads = self.frame.listing, self.frame.reads
        steps = list(zip(places, listing.instructions, strict=True))
        ends = {b: slot for slot, s in steps for b in (*s.makes, *s.reads)}
        sizes = {b: size for s in listing.instructions for b, size in s.makes.items()
                 if b not in listing.outputs}
        index = {b: i for i, b in enumerate(sizes)}
        # Which site reads which buffer.
        pairs = [(self.index[name], index[buffer]) for name in self.index
                 for operands in reads[name] for buffer in operands if buffer in index]
        self.readers = _integers([site for site, _ in pairs])
        self.buffers_read = _integers([buffer for _, buffer in pairs])
        self.ends, self.bytes = _integers([ends[b] for b in sizes]), _floats(list(sizes.values()))
        self.transients = _floats([0.0] * self.slots)
        self.transients[_integers(places)] = _floats([s.transient for _, s in steps])
        makes = [(slot, size) for slot, s in steps for size in s.makes.values()]
        gains = _floats([0.0] * (self.slots + 1))
        gains = gains.index_add(0, _integers([slot for slot, _ in makes]),
                                _floats([size for _, size in makes]))
        self.changes = gains.index_add(0, self.ends + 1, -self.bytes)

    def peak(self, choices: Sequence[Choice]) -> float:
        """Returns the bytes of `plan_peak(frame, choices)`, the same bits if sizes are integers."""
        names, freeing = movable(self.frame, choices)
        sites = _sites([c for c in choices if c.site.name in self.index])
        highest = raised(names, freeing, lambda early: self._worst(sites, early))[1]
        return self.frame.listing.inputs + highest

    def floor(self) -> float:
        """Returns the bytes of forward and backward alone: without recomputing, no plan needs
        fewer.
        """
        running = self.changes.cumsum(0)[:-1] + self.transients
        return self.frame.listing.inputs + float(running.max())

    def _worst(self, sites: _Sites, early: Sequence[str]) -> tuple[float, str]:
        """Returns (bytes at the worst slot, the site or bundle of that slot)."""
        norm = sites.late + self.after_backward
        raised_sites = _integers([self.index[name] for name in early if name != BUNDLE])
        norm[raised_sites] = self.early[raised_sites]
        copied = self.bundle_slot
        if BUNDLE in early and bool((norm[sites.bundled] < self.after_backward).all()):
            copied = int(norm[sites.bundled].max()) + 1
        final_read = torch.where(sites.bundled, copied, self.sums).where(~sites.rereads, norm)
        reads = self.sums.where(sites.rereads, norm)[self.readers]
        ends = self.ends.scatter_reduce(0, self.buffers_read, reads, "amax")
        longer = ends > self.ends
        slots = [norm, final_read + 1, self.sums, self.sums + 2, self.sums + 1,
                 self.ends[longer] + 1, ends[longer] + 1]
        changes = [sites.held, -sites.held, sites.copies, -sites.copies, sites.result,
                   self.bytes[longer], -self.bytes[longer]]
        if sites.bundle:
            slots.append(torch.stack([_integers(copied), self.sums[sites.bundled].max() + 1]))
            changes.append(_floats([sites.bundle, -sites.bundle]))
        transients = self.transients.clone()
        transients[norm], transients[self.sums + 1] = sites.transient, sites.scratch
        running = self.changes.index_add(0, torch.cat(slots), torch.cat(changes)).cumsum(0)[:-1]
        worst, slot = (running + transients).max(0)
        return float(worst), self.owner.get(int(slot), "")


def _sites(choices: Sequence[Choice]) -> _Sites:
    flags = [(c.cost.rereads, bundled(c)) for c in choices]
    rows = [(c.cost.held, norm_transient(c), *sum_makes(c)) for c in choices]
    sizes = _floats(rows).reshape(-1, 5)
    rereads, small = torch.tensor(flags, dtype=torch.bool, device="cpu").reshape(-1, 2).unbind(1)
    held, transient, copies, result, scratch = sizes.unbind(1)
    late = small.argsort(stable=True).argsort()
    return _Sites(rereads, small, late, held, transient, copies, result, scratch,
                  bundle_bytes(choices))


def _integers(values: int | Sequence[int]) -> Tensor:
    return torch.tensor(values if isinstance(values, int) else list(values), dtype=torch.long,
                        device="cpu")


def _floats(values: Sequence[float] | Sequence[tuple[float, ...]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")
