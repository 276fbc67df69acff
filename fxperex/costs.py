"""What one site costs under one strategy: values without code, which devices turn into seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """`calls` of one kernel class of `devices.KERNELS`; `amount` is one call's flop or bytes."""

    kernel: str
    shape: tuple[int, ...]
    amount: float
    calls: int = 1
    dtype: str = "float32"


@dataclass(frozen=True)
class Cost:
    """What one site costs under one strategy, from norm to weighted sum.

    `work`: kernels; `bytes`: traffic of everything else; `launches`: its operations; `held`: bytes
    kept from the norm to the weighted sum; `transient`: bytes needed beside them while it runs;
    `rereads`: the weighted sum needs the node's input and output gradient once more.
    """

    work: tuple[Work, ...] = ()
    bytes: float = 0.0
    held: float = 0.0
    transient: float = 0.0
    launches: int = 1
    rereads: bool = False
