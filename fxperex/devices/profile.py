"""Profile: what a device was measured to do, and the seconds that predicts for a Cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fxperex.costs import Cost, Work
from fxperex.devices.heap import kept
from fxperex.devices.interpolate import Surface
from fxperex.devices.kernel_classes import KERNELS
from fxperex.errors import ConfigError
from fxperex.memory.workspace import FRESH

VERSION = 9
WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number
# relative error of figures that nobody measured: kernels reach half of a data sheet's peak, or less
UNMEASURED = 1.0
Samples = Mapping[str, Mapping[str, tuple[tuple[tuple[int, ...], float], ...]]]


@dataclass(frozen=True)
class Profile:
    """`samples`: kernel -> dtype -> ((shape, amount per second), ...).

    `device`: what it holds for; `source`: "measured", or where figures that were not measured come
    from.
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
        parts = [(self.of(w), self.errors[w.kernel]) for w in cost.work]
        parts.append((self.traffic(cost.bytes) + cost.launches * self._launch, self.errors["copy"]))
        return sum(s * e for s, e in parts) / max(sum(s for s, _ in parts), 1e-12)

    def of(self, work: Work) -> float:
        """Returns the predicted seconds of one Work: at its kernel's rate, and the first touch of
        tensors too large to reuse.
        """
        if work.kernel == "fresh":
            return work.calls * self.touching(work.amount)
        seconds = work.amount / (self._surfaces[work.kernel].rate(work.shape) * self._factor(work))
        traffic = (WIDTHS[work.dtype] * elements
                   for elements in KERNELS[work.kernel].made(work.shape))
        return work.calls * (seconds + sum(self.touching(b) for b in traffic if b >= FRESH))

    def touching(self, made: float) -> float:
        """Returns the seconds of the first touch of `made` bytes that are new to the process; none
        where pages are kept.
        """
        return 0.0 if kept() else made / self._surfaces["fresh"].rate((made,))

    @cached_property
    def errors(self) -> dict[str, float]:
        """Relative error by kernel class, from predicting each sample without it (at least 3 %, the
        clock's own).
        """
        base = 0.03 if self.source == "measured" else UNMEASURED
        return {k: max(s.leave_one_out(), base) for k, s in self._surfaces.items()}

    @cached_property
    def _surfaces(self) -> dict[str, Surface]:
        return {k: _surface(v["float32"]) for k, v in self.samples.items()}

    def _factor(self, work: Work) -> float:
        """Rate of another dtype over float32's: measured where it was, else by the width of a
        number.
        """
        if work.dtype == "float32" or KERNELS[work.kernel].axes == ("one",):
            return 1.0
        samples = self.samples[work.kernel].get(work.dtype)
        if not samples or work.kernel == "gram":
            return 0.5 if work.dtype == "float64" and work.kernel != "gram" else 1.0
        surface = self._surfaces[work.kernel]
        return math.exp(
            sum(math.log(rate / surface.rate(shape)) for shape, rate in samples) / len(samples))

    def traffic(self, moved: float) -> float:
        """Returns the seconds of moving `moved` bytes, read and written ones together, by pointwise
        operations.
        """
        return moved / self._surfaces["copy"].rate((moved / 2,)) if moved else 0.0

    @cached_property
    def _launch(self) -> float:
        return 1.0 / self._surfaces["launch"].rates[0]

    def to_json(self) -> str:
        """Returns the profile as JSON, one sample list a line."""
        lines = [
            f'  "{k}": {{' +
            ", ".join(f'"{d}": {json.dumps([[list(s), float(f"{r:.4g}")] for s, r in rows])}'
                      for d, rows in by.items()) + "}"
            for k, by in self.samples.items()
        ]
        head = {
            "version": VERSION, "device": self.device, "torch": self.torch, "source": self.source
        }
        head_text = "".join(f' "{k}": {json.dumps(v)},\n' for k, v in head.items())
        return "{\n" + head_text + ' "samples": {\n' + ",\n".join(lines) + "\n }\n}\n"

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


def _checked(samples: dict[str, dict[str, Any]]) -> Samples:
    if set(samples) != set(KERNELS):
        raise ConfigError("its kernels are not this library's: "
                          f"{sorted(set(samples) ^ set(KERNELS))}")
    made = {
        k: {
            d: tuple((tuple(int(v)
                            for v in s), float(r))
                     for s, r in rows)
            for d, rows in by.items()
        }
        for k, by in samples.items()
    }
    for kernel, by in made.items():
        rows = [row for of in by.values() for row in of]
        if not by.get("float32") or any(
                len(s) != len(KERNELS[kernel].axes) or not 0 < r < math.inf for s, r in rows):
            raise ConfigError(f"its samples of {kernel!r} are missing, of other sizes, or not "
                              "positive numbers")
    return made
