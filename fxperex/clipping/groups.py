"""Rules with a norm and a bound for each group of parameters."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxperex.clipping.rule import Clip, check_positive
from fxperex.errors import ConfigError


@dataclass(frozen=True)
class PerLayer(Clip):
    """`min(1, C_l / norm_l)` for every layer l by itself: a layer is the parameters of one module
    (McMahan et al. 2018).

    bound: the sensitivity of all layers together, of which each gets `bound / sqrt(layers)`; or one
    bound per layer, in the order of the model, and the sensitivity is the root of the sum of their
    squares. Raises ConfigError.
    """

    bound: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for value in self.bound if isinstance(self.bound, tuple) else (self.bound,):
            check_positive(value, "clip")
        if self.bound == ():
            raise ConfigError("clip per layer needs one bound for all layers, or one for each; "
                              "got none")

    @property
    def sensitivity(self) -> float:
        return math.hypot(*self.bound) if isinstance(self.bound, tuple) else self.bound

    def groups(self, names: Sequence[str]) -> tuple[int, ...]:
        modules = [name.rpartition(".")[0] for name in names]
        layers = {layer: i for i, layer in enumerate(dict.fromkeys(modules))}
        if isinstance(self.bound, tuple) and len(self.bound) != len(layers):
            raise ConfigError(f"{len(self.bound)} clip bounds for {len(layers)} layers: "
                              f"{', '.join(layers)}")
        return tuple(layers[module] for module in modules)

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        bounds = self.bound if isinstance(self.bound, tuple) else \
            [self.bound / math.sqrt(len(norms))] * len(norms)
        return _each_alone(norms, bounds)


@dataclass(frozen=True, init=False)
class PerGroup(Clip):
    """`min(1, C_k / norm_k)` for groups of parameters by glob, as `{"*.bias": 0.1, "*": 1.0}`.

    A parameter belongs to the first glob that matches it. The sensitivity is the root of the sum of
    the bounds' squares. Raises ConfigError, also for a glob that no parameter belongs to.
    """

    bounds: tuple[tuple[str, float], ...]

    def __init__(self, bounds: dict[str, float]) -> None:
        if not isinstance(bounds, dict) or not bounds:
            raise ConfigError(f"clip per group needs {{glob of parameter names: bound}}; got "
                              f"{bounds!r}")
        for glob, value in bounds.items():
            check_positive(value, f"clip[{glob!r}]")
        object.__setattr__(self, "bounds", tuple(bounds.items()))

    @property
    def sensitivity(self) -> float:
        return math.hypot(*(value for _, value in self.bounds))

    def groups(self, names: Sequence[str]) -> tuple[int, ...]:
        globs = [glob for glob, _ in self.bounds]
        groups = [next((i for i, glob in enumerate(globs) if fnmatch.fnmatchcase(name, glob)), -1)
                  for name in names]
        unmatched = [n for n, group in zip(names, groups, strict=True) if group < 0]
        idle = [glob for i, glob in enumerate(globs) if i not in groups]
        if unmatched or idle:
            reasons = []
            if unmatched:
                reasons.append(f"no glob matches the parameters {', '.join(unmatched)}")
            if idle:
                reasons.append("these globs match no parameter, or only ones that an earlier glob "
                               f"took: {', '.join(map(repr, idle))}")
            raise ConfigError(f"clip per group: {'; '.join(reasons)}. "
                              f"The parameters are {', '.join(names)}")
        return tuple(groups)

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return _each_alone(norms, [value for _, value in self.bounds])


def _each_alone(norms: Tensor, bounds: Sequence[float]) -> Tensor:
    """Returns each group's factor under its own bound."""
    limits = torch.tensor(bounds, dtype=norms.dtype, device=norms.device)
    return torch.clamp(limits / norms, max=1.0)
