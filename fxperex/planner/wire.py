"""What a step takes on several devices that need not be present: the plan's seconds, padding, and
the bytes on the wire.

Data parallel, per logical step: `m` physical batches on every rank; then the float64 sums are
reduced and scattered, each rank noises its part, and the means are gathered in the parameters'
dtype. Both collectives take `latency + bytes (W - 1) / (W bandwidth)`, and nothing hides them. The
rows of a step are Poisson with mean E, so `m = ceil(k / (R W))` and the padding are computed from
its probabilities. Not counted: noise, optimizer, and ranks that are slower than others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxperex.errors import ConfigError
from fxperex.plan.byte_sizes import parse_memory, size

SUM_BYTES = 8  # float64
LATENCY = 1e-5  # seconds of a hop; a collective of W ranks has about log2 W of them
TAIL = 12  # standard deviations of the row count that are looked at


@dataclass(frozen=True)
class Wire:
    """`ranks` devices, each with a link of `bandwidth` bytes a second in each direction. Raises
    ConfigError.
    """

    ranks: int
    bandwidth: float
    latency: float = LATENCY

    def __post_init__(self) -> None:
        if isinstance(self.ranks, bool) or not isinstance(self.ranks, int) or self.ranks < 1:
            raise ConfigError(f"ranks must be a whole number above 0; got {self.ranks!r}")

    def seconds(self, count: float) -> float:
        """Returns the seconds of a reduce-scatter or an all-gather of `count` bytes in all."""
        if self.ranks == 1:
            return 0.0
        share = (self.ranks - 1) / self.ranks
        return self.latency * math.ceil(math.log2(self.ranks)) + count * share / self.bandwidth


@dataclass(frozen=True)
class Spread:
    """A logical step spread over the ranks of a Wire.

    expected: mean rows of the step. batches: mean physical batches of a rank. padding: rows
    computed for each row drawn. compute, reduce, gather: seconds. efficiency: of one device that
    computes no padding and waits for nobody.
    """

    wire: Wire
    expected: float
    batches: float
    padding: float
    compute: float
    reduce: float
    gather: float

    @property
    def efficiency(self) -> float:
        return self.compute / self.padding / (self.compute + self.reduce + self.gather)

    def __str__(self) -> str:
        total = self.compute + self.reduce + self.gather
        return (f"on {self.wire.ranks} ranks, {size(self.wire.bandwidth)}/s each way, "
                f"{self.expected:g} rows a step: {1e3 * total:.2f} ms, of which physical batches "
                f"{1e3 * self.compute:.2f} ({self.batches:.2f} a rank), reduction "
                f"{1e3 * self.reduce:.2f}, gathering {1e3 * self.gather:.2f}\n"
                f"rows computed per row drawn {self.padding:.3f}; efficiency "
                f"{self.efficiency:.2f}; arithmetic, not measured: see fxperex/docs/ranks.md")


def spread(seconds: float, rows: int, elements: int, parameter_bytes: float, wire: Wire,
           expected: float | None = None) -> Spread:
    """Returns the Spread of a step with `seconds` for `rows` rows and so many parameters.

    expected: mean rows of a logical step; default one physical batch a rank.
    """
    mean = float(rows * wire.ranks) if expected is None else expected
    if not 0 < mean < math.inf:
        raise ConfigError(f"the expected batch must be a number above 0; got {expected!r}")
    batches = _batches(mean, rows, wire.ranks)
    return Spread(wire, mean, batches, batches * rows * wire.ranks / mean, batches * seconds,
                  wire.seconds(SUM_BYTES * elements), wire.seconds(parameter_bytes))


def bandwidth(text: str) -> float:
    """Returns bytes a second of "45GB/s". Raises ConfigError."""
    return float(parse_memory(text.removesuffix("/s")) or 0)


def _batches(mean: float, rows: int, ranks: int) -> float:
    """The mean of `max(1, ceil(ceil(k / rows) / ranks))` for k Poisson rows."""
    width = TAIL * math.sqrt(mean) + TAIL
    low, high = max(0, math.floor(mean - width)), math.ceil(mean + width)
    total = weight = 0.0
    for k in range(low, high + 1):
        chance = math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))
        total += chance * max(1, math.ceil(math.ceil(k / rows) / ranks))
        weight += chance
    return total / weight
