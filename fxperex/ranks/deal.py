"""Which rows of a step a rank runs: pieces of a fixed size, dealt round robin.

A piece is the same on any number of ranks, and so are its dropout and what it adds to the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor


def share(drawn: Tensor, size: int, rank: int, world: int) -> Tensor:
    """Returns the rows of this rank, in order: pieces `rank`, `rank + world`, ... of `size` rows.

    Only the final piece of the draw may be smaller, so it is the final one of its rank as well.
    """
    pieces = drawn.split(size)[rank::world] if len(drawn) else ()
    return torch.cat(pieces) if pieces else drawn[:0]


def place(count: int, size: int, rank: int, world: int) -> int:
    """Returns the place in the whole draw of the row after a rank's `count` rows."""
    piece, row = divmod(count, size)
    return (piece * world + rank) * size + row
