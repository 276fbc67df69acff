"""Totals over several ranks: every bucket is reduced and scattered, so that each rank has its part
of it.

One reduction for each bucket and step, at most `FLIGHT` of them at a time: a bucket lives until its
reduction has ended.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fxperex.ranks import totals
from fxperex.ranks.totals import Part, Totals, block_digests, buckets

FLIGHT = 2

Wait = Callable[[], None]


class Wire(Protocol):
    """The collectives that the totals need; each starts one and returns what waits for it."""

    rank: int
    size: int

    def scatter(self, out: Tensor, values: Tensor) -> Wait:
        """Adds up `values` of all ranks; part `rank` of the sum goes to `out`."""

    def gather(self, out: Tensor, values: Tensor) -> Wait:
        """Puts `values` of all ranks, one after another, into `out`."""

    def exchange(self, value: Any) -> list[Any]:
        """Returns the value, for JSON, of every rank."""


class Scattered(Totals):
    """This rank's part of the sums of all ranks, in float64."""

    def __init__(self, sums: Sequence[Tensor], dtypes: Sequence[torch.dtype], wire: Wire) -> None:
        self._wire, self._dtypes, self._device = wire, list(dtypes), sums[0].device
        self._shapes = [total.shape for total in sums]
        self._groups = buckets(sums, dtypes)
        scattered = [self._room(group, torch.float64) for group in self._groups]
        with torch.no_grad():
            _in_flight(wire.scatter(out, self._flat(sums, group))
                       for group, out in zip(self._groups, scattered, strict=True))
        held = [list(self._cut(group, out))
                for group, out in zip(self._groups, scattered, strict=True)]
        self.parts = [part for parts in held for part in parts]
        self._counts = [len(parts) for parts in held]

    def gathered(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Returns one tensor for each sum, in its dtype, of `values` for each part on every
        rank.
        """
        waiting = iter(values)
        outs, sent = [], []
        for group, count in zip(self._groups, self._counts, strict=True):
            dtype = self._dtypes[group[0]]
            chunk = self._room(group, dtype)
            pieces = [next(waiting).to(dtype) for _ in range(count)]
            if pieces:
                ready = torch.cat(pieces)
                chunk[:len(ready)] = ready
            sent.append(chunk)
            outs.append(torch.empty(len(chunk) * self._wire.size, dtype=dtype,
                                    device=self._device))
        _in_flight(self._wire.gather(out, chunk) for out, chunk in zip(outs, sent, strict=True))
        return [flat[start:start + size].view(self._shapes[item])
                for group, flat in zip(self._groups, outs, strict=True)
                for item, start, size in self._places(group)]

    def digest(self, key: bytes) -> bytes:
        """Returns the hash that one process would make of all sums: every rank hashes its part."""
        parts = iter(self.parts)
        ours = [[d.hex() for d in block_digests([next(parts).values for _ in range(count)], key)]
                for count in self._counts]
        theirs = self._wire.exchange(ours)
        digests = [bytes.fromhex(d) for bucket in zip(*theirs, strict=True)
                   for rank in bucket for d in rank]
        return hashlib.blake2b(b"".join(digests), key=key, digest_size=32).digest()

    def _places(self, group: list[int]) -> Iterator[tuple[int, int, int]]:
        """Yields (tensor, its start in the bucket, its elements)."""
        start = 0
        for item in group:
            size = self._shapes[item].numel()
            yield item, start, size
            start += size

    def _chunk(self, group: list[int]) -> int:
        """Elements of each rank's part of a bucket: whole blocks of the digest."""
        count = sum(self._shapes[item].numel() for item in group)
        blocks = -(-count // totals.GRAIN)
        return -(-blocks // self._wire.size) * totals.GRAIN

    def _room(self, group: list[int], dtype: torch.dtype) -> Tensor:
        return torch.zeros(self._chunk(group), dtype=dtype, device=self._device)

    def _flat(self, sums: Sequence[Tensor], group: list[int]) -> Tensor:
        """The bucket of this rank's own sums, filled up with zeros."""
        length = self._chunk(group) * self._wire.size
        flat = torch.zeros(length, dtype=torch.float64, device=self._device)
        for item, start, size in self._places(group):
            flat[start:start + size] = sums[item].detach().reshape(-1)
        return flat

    def _cut(self, group: list[int], chunk: Tensor) -> Iterator[Part]:
        """Yields the parts of the tensors that lie in this rank's part of a bucket."""
        low = self._wire.rank * len(chunk)
        high = low + len(chunk)
        for item, start, size in self._places(group):
            a, b = max(start, low), min(start + size, high)
            if a < b:
                yield Part(item, a - start, chunk[a - low:b - low])


def _in_flight(begun: Iterator[Wait]) -> None:
    """Waits for all that `begun` starts, in order; at most FLIGHT are under way."""
    waiting: deque[Wait] = deque()
    for wait in begun:
        waiting.append(wait)
        if len(waiting) >= FLIGHT:
            waiting.popleft()()
    while waiting:
        waiting.popleft()()
