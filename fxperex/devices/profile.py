"""Profile: the measured rates of a device, and the seconds that they predict for a Cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fxperex.costs import Cost, Work
from fxperex.devices.heap import pages_stay
from fxperex.devices.interpolate import Surface
from fxperex.devices.kernel_classes import BASIC, KERNELS, ONE, relative
from fxperex.errors import ConfigError
from fxperex.memory.workspace import FRESH

VERSION = 9  # of the JSON
WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number
# Relative error of rates that nobody measured: kernels reach half of a data sheet's peak, or less.
UNMEASURED = 1.0
Samples = Mapping[str, Mapping[str, tuple[tuple[tuple[int, ...], float], ...]]]


@dataclass(frozen=True)
class Profile:
    """The rates of one device.

    device: the name of what it holds for. samples: kernel -> dtype -> ((shape, amount per second),
    ...). source: "measured", or where figures come from that were not measured.

    A kernel without samples, such as one added after the calibration, has the rate of its nearest
    relative (`relatives`). Samples of a kernel that this library does not have are ignored.
    """

    device: str
    torch: str
    samples: Samples
    source: str = "measured"

    def seconds(self, cost: Cost) -> float:
        """Returns the predicted seconds of `cost`: every kernel at its rate, traffic, launches."""
        return sum(self.of(w)
                   for w in cost.work) + self.traffic(cost.bytes) + cost.launches * self._launch

    def error(self, cost: Cost) -> float:
        """Returns the relative error to expect of `seconds(cost)`: each kernel's own, weighted by
        its time.
        """
        parts = [(self.of(w), self.errors.get(w.kernel, UNMEASURED)) for w in cost.work]
        parts.append((self.traffic(cost.bytes) + cost.launches * self._launch, self.errors["copy"]))
        return sum(s * e for s, e in parts) / max(sum(s for s, _ in parts), 1e-12)

    def of(self, work: Work) -> float:
        """Returns the predicted seconds of one Work: at its kernel's rate, and the first touch of
        tensors too large to reuse.
        """
        if work.kernel == "fresh":
            return work.calls * self.touching(work.amount)
        seconds = work.amount / (self._rate(work) * self._factor(work))
        sizes = [WIDTHS[work.dtype] * elements
                 for elements in KERNELS[work.kernel].allocates(work.shape)]
        return work.calls * (seconds + sum(self.touching(b) for b in sizes if b >= FRESH))

    def relatives(self, costs: Iterable[Cost]) -> dict[str, str]:
        """Returns {kernel of `costs` that was never measured: the kernel whose rate it has}."""
        kernels = dict.fromkeys(w.kernel for cost in costs for w in cost.work)
        return {k: self._source(k) for k in kernels if k not in self._surfaces}

    def touching(self, size: float) -> float:
        """Returns the seconds of the first touch of `size` bytes that are new to the process; 0 if
        the process keeps its pages.
        """
        return 0.0 if pages_stay() else size / self._surfaces["fresh"].rate((size,))

    @cached_property
    def errors(self) -> dict[str, float]:
        """Relative error by measured kernel, from predicting each sample without it (at least 3 %,
        the clock's own).
        """
        base = 0.03 if self.source == "measured" else UNMEASURED
        return {k: max(s.leave_one_out(), base) for k, s in self._surfaces.items()}

    @cached_property
    def _surfaces(self) -> dict[str, Surface]:
        return {k: _surface(v["float32"]) for k, v in self.samples.items() if k in KERNELS}

    def _source(self, kernel: str) -> str:
        """Returns `kernel` if it was measured, else its nearest relative."""
        return kernel if kernel in self._surfaces else relative(kernel, self._surfaces)

    def _rate(self, work: Work) -> float:
        source = self._source(work.kernel)
        surface = self._surfaces[source]
        same = len(KERNELS[source].axes) == len(KERNELS[work.kernel].axes)
        return surface.rate(work.shape) if same else surface.typical

    def _factor(self, work: Work) -> float:
        """Returns the rate of the dtype over float32's: measured, or else by a number's width."""
        if work.dtype == "float32" or KERNELS[work.kernel].axes == ONE:
            return 1.0
        source = self._source(work.kernel)
        samples = self.samples[source].get(work.dtype)
        if not samples or source == "gram":
            return 0.5 if work.dtype == "float64" and source != "gram" else 1.0
        surface = self._surfaces[source]
        return math.exp(
            sum(math.log(rate / surface.rate(shape)) for shape, rate in samples) / len(samples))

    def traffic(self, moved: float) -> float:
        """Returns the seconds in which pointwise operations read and write `moved` bytes in all."""
        return moved / self._surfaces["copy"].rate((moved / 2,)) if moved else 0.0

    @cached_property
    def _launch(self) -> float:
        return 1.0 / self._surfaces["launch"].rates[0]

    def to_json(self) -> str:
        """Returns the profile as JSON, with a line for each kernel."""
        head = {"version": VERSION, "device": self.device, "torch": self.torch,
                "source": self.source}
        top = "".join(f' "{name}": {json.dumps(value)},\n' for name, value in head.items())
        lines = [f'  "{kernel}": {json.dumps(_rounded(by))}'
                 for kernel, by in self.samples.items()]
        return "{\n" + top + ' "samples": {\n' + ",\n".join(lines) + "\n }\n}\n"

    @staticmethod
    def from_json(text: str) -> Profile:
        """Returns the Profile of `text`. Raises ConfigError that says what is wrong with it."""
        try:
            body = json.loads(text)
            if body["version"] != VERSION:
                raise ConfigError(f"it has version {body['version']!r}, this library reads "
                                  f"{VERSION}")
            return Profile(str(body["device"]), str(body["torch"]), _checked(body["samples"]),
                           str(body["source"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"it is not a device profile ({type(error).__name__}: "
                              f"{error})") from error


def _surface(rows: tuple[tuple[tuple[int, ...], float], ...]) -> Surface:
    return Surface(tuple(s for s, _ in rows), tuple(r for _, r in rows))


def _rounded(by: Mapping[str, Iterable[tuple[tuple[int, ...], float]]]) -> dict[str, Any]:
    return {dtype: [[list(shape), float(f"{rate:.4g}")] for shape, rate in rows]
            for dtype, rows in by.items()}


def _checked(samples: dict[str, dict[str, Any]]) -> Samples:
    """Returns the samples as tuples. Raises ConfigError for those that cannot be used."""
    checked = {kernel: {dtype: tuple(_sample(*row) for row in rows) for dtype, rows in by.items()}
               for kernel, by in samples.items()}
    missing = [kernel for kernel in BASIC if kernel not in checked]
    if missing:
        raise ConfigError(f"it has no samples of {', '.join(missing)}")
    for kernel, by in checked.items():
        count = len(KERNELS[kernel].axes) if kernel in KERNELS else None
        usable = all(count in (len(shape), None) and 0 < rate < math.inf
                     for rows in by.values() for shape, rate in rows)
        if not by.get("float32") or not usable:
            raise ConfigError(f"its samples of {kernel!r} are missing, of other sizes, or not "
                              "positive numbers")
    return checked


def _sample(shape: Iterable[Any], rate: Any) -> tuple[tuple[int, ...], float]:
    return tuple(int(size) for size in shape), float(rate)
