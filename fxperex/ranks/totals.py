"""The sums of a step over all ranks: each rank holds a part of them, and no rank needs all.

sums -> buckets of float64 -> reduce-scatter -> this rank's parts -> noise and division -> gather.
The digest of a step's sums is the same on any number of ranks: it is made of blocks that are never
cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BUCKET = 25 * 2**17  # elements of a bucket: 25 MiB of float64
# Elements of a block of the digest. A rank's part of a bucket is so many blocks; the discrete
# noise is drawn in blocks of the same size.
GRAIN = 2**13


class Part(NamedTuple):
    """Elements from `start` on of tensor `item`, `values` of them: of one shape on one rank, else
    flat.
    """

    item: int
    start: int
    values: Tensor


def buckets(sums: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[list[int]]:
    """Returns the numbers of the tensors in each bucket: neighbours of one dtype, about `BUCKET`
    elements together.
    """
    groups: list[list[int]] = []
    size = 0
    for item, (total, dtype) in enumerate(zip(sums, dtypes, strict=True)):
        fits = bool(groups) and size + total.numel() <= BUCKET
        if not fits or dtypes[groups[-1][-1]] != dtype:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += total.numel()
    return groups


class Totals:
    """The sums of one process, as parts: every tensor as it is.

    parts: what is here. item numbers are those of the sums.
    """

    def __init__(self, sums: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> None:
        self._groups = buckets(sums, dtypes)
        self.parts = [Part(item, 0, total) for item, total in enumerate(sums)]

    def gathered(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Returns one tensor for each sum, of `values` for each part on every rank."""
        return list(values)

    def digest(self, key: bytes) -> bytes:
        """Returns a keyed hash of all sums as float64."""
        digests = [d for group in self._groups
                   for d in block_digests([self.parts[item].values for item in group], key)]
        return hashlib.blake2b(b"".join(digests), key=key, digest_size=32).digest()


def block_digests(tensors: Sequence[Tensor], key: bytes) -> Iterator[bytes]:
    """Yields a keyed hash of every block of GRAIN elements of `tensors`, one after another, as
    float64.
    """
    hasher, room = hashlib.blake2b(key=key, digest_size=32), GRAIN
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).cpu()
        start = 0
        while start < len(flat):
            piece = flat[start:start + room].double()
            hasher.update(piece.numpy().tobytes())
            start, room = start + len(piece), room - len(piece)
            if not room:
                yield hasher.digest()
                hasher, room = hashlib.blake2b(key=key, digest_size=32), GRAIN
    if room < GRAIN:
        yield hasher.digest()
