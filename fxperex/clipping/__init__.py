"""Clipping rules: from one example's gradient norms to its factors, and the sensitivity that noise
must cover.

A rule sees the norms `[K]` of the parameter groups it asked for, of one example at a time: `apply`
maps it over the examples with `torch.func.vmap`, so no rule can let one example move another's
factor. Whatever a rule answers, `apply` holds `|clipped gradient| <= sensitivity`: a declared bound
is enforced inside the step graph, not trusted.
"""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxperex.config import SHORTEST
from fxperex.errors import ConfigError

# Factors stay far inside float32, in which sums are formed; a smaller factor is always allowed.
LARGEST_FACTOR = 2.0**96
# Norms that `Function` is tried on when it is made.
PROBES = (0.0, 1e-30, 1e-3, 0.5, 1.0, 2.0, 1e3, 1e30)


class Clip(ABC):
    """A clipping rule. Subclass it for your own: `sensitivity` and `factors` are enough."""

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """Largest L2 norm of one example's share of the sum, over all its groups together."""

    @abstractmethod
    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        """Factors `[K]` (or one for all) of ONE example with group norms `[K]`, float64."""

    def groups(self, names: Sequence[str]) -> tuple[int, ...]:
        """Returns the group, 0 to K-1, of every parameter of `names`. Raises ConfigError."""
        return (0,) * len(names)

    def inputs(self) -> tuple[Tensor, ...]:
        """Returns what the step graph takes afresh at every step, and hands to `factors`."""
        return ()

    def apply(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        """Returns factors `[B, K]` for norms `[B, K]`, held to the declared sensitivity."""
        factors = torch.func.vmap(lambda one: self.factors(one, *inputs).broadcast_to(one.shape))(
            norms)
        factors = torch.nan_to_num(factors.to(norms.dtype), nan=0.0).clamp(0.0, LARGEST_FACTOR)
        share = (factors * norms.clamp(min=SHORTEST)).square().sum(1, keepdim=True).sqrt()
        return factors * (self.sensitivity / share).clamp(max=1.0)


@dataclass(frozen=True)
class Flat(Clip):
    """`min(1, bound / norm)`: DP-SGD's clipping (Abadi et al. 2016). ConfigError unless 0 < bound <
    inf.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        _positive(self.bound, "clip")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return torch.clamp(self.bound / norms, max=1.0)


@dataclass(frozen=True)
class Automatic(Clip):
    """`bound / (norm + gamma)`: AUTO-S (Bu et al., arXiv 2206.07136), no threshold to tune."""

    bound: float = 1.0
    gamma: float = 0.01

    def __post_init__(self) -> None:
        _positive(self.bound, "clip")
        _positive(self.gamma, "gamma")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return self.bound / (norms + self.gamma)


@dataclass(frozen=True)
class Normalised(Clip):
    """`bound / max(norm, floor)`: every gradient brought to length `bound` (Das et al., arXiv
    2106.07094).

    floor: below it float32 squares underflow and a norm would be read too low; a shorter gradient
    stays shorter.
    """

    bound: float = 1.0
    floor: float = SHORTEST

    def __post_init__(self) -> None:
        _positive(self.bound, "clip")
        if not _is_number(self.floor) or self.floor < SHORTEST:
            raise ConfigError(f"floor must be a finite number of at least {SHORTEST}; got "
                              f"{self.floor!r}")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return self.bound / norms.clamp(min=self.floor)


@dataclass(frozen=True)
class PerLayer(Clip):
    """`min(1, C_l / norm_l)` for every layer l on its own: the parameters of one module (McMahan et
    al. 2018).

    bound: the sensitivity of all layers together, each gets `bound / sqrt(layers)`; or one bound
    per layer in the order of the model, and the sensitivity is the root of their squares' sum.
    Raises ConfigError.
    """

    bound: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for value in self.bound if isinstance(self.bound, tuple) else (self.bound,):
            _positive(value, "clip")
        if self.bound == ():
            raise ConfigError("clip per layer needs one bound for all layers, or one for each; "
                              "got none")

    @property
    def sensitivity(self) -> float:
        return math.hypot(*self.bound) if isinstance(self.bound, tuple) else self.bound

    def groups(self, names: Sequence[str]) -> tuple[int, ...]:
        layers = {
            layer: i
            for i, layer in enumerate(dict.fromkeys(n.rpartition(".")[0] for n in names))
        }
        if isinstance(self.bound, tuple) and len(self.bound) != len(layers):
            raise ConfigError(f"{len(self.bound)} clip bounds for {len(layers)} layers: "
                              f"{', '.join(layers)}")
        return tuple(layers[n.rpartition(".")[0]] for n in names)

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        bounds = self.bound if isinstance(
            self.bound, tuple) else [self.bound / math.sqrt(len(norms))] * len(norms)
        return _each(norms, bounds)


@dataclass(frozen=True, init=False)
class PerGroup(Clip):
    """`min(1, C_k / norm_k)` for groups of parameters by glob, as `{"*.bias": 0.1, "*": 1.0}`; the
    first match counts.

    Sensitivity: the root of the bounds' squares' sum. Raises ConfigError, also for a glob without a
    parameter.
    """

    bounds: tuple[tuple[str, float], ...]

    def __init__(self, bounds: dict[str, float]) -> None:
        if not isinstance(bounds, dict) or not bounds:
            raise ConfigError(f"clip per group needs {{glob of parameter names: bound}}; got "
                              f"{bounds!r}")
        for glob, value in bounds.items():
            _positive(value, f"clip[{glob!r}]")
        object.__setattr__(self, "bounds", tuple(bounds.items()))

    @property
    def sensitivity(self) -> float:
        return math.hypot(*(value for _, value in self.bounds))

    def groups(self, names: Sequence[str]) -> tuple[int, ...]:
        groups = [
            next((i for i, (glob, _) in enumerate(self.bounds) if fnmatch.fnmatchcase(n, glob)),
                 -1) for n in names
        ]
        unmatched = [n for n, group in zip(names, groups, strict=True) if group < 0]
        idle = [glob for i, (glob, _) in enumerate(self.bounds) if i not in groups]
        if unmatched or idle:
            reasons = [f"no glob matches {', '.join(unmatched)}"] * bool(unmatched)
            reasons += [f"nothing is left for the globs {', '.join(idle)}"] * bool(idle)
            raise ConfigError(f"clip per group: {'; '.join(reasons)}. "
                              f"The parameters are {', '.join(names)}")
        return tuple(groups)

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return _each(norms, [value for _, value in self.bounds])


@dataclass(frozen=True)
class Function(Clip):
    """`call(norm) -> factor`: any function of one example's norm (a scalar tensor), with the bound
    it declares.

    The bound is tried on norms from 0 to 1e30 here and enforced in every step. Raises ConfigError.
    """

    call: Callable[[Tensor], Tensor]
    bound: float

    def __post_init__(self) -> None:
        _positive(self.bound, "bound")
        norms = torch.tensor(PROBES, dtype=torch.float64)
        try:
            factors = torch.func.vmap(self.call)(norms)
        except Exception as e:  # whatever a user's function may raise
            raise ConfigError("the clip function must map one norm (a scalar tensor) to one "
                              "factor by torch operations without branches on its value: "
                              f"{type(e).__name__}: {e}") from e
        if factors.shape != norms.shape or not torch.isfinite(factors * norms).all() or (factors
                                                                                         < 0).any():
            raise ConfigError("the clip function must give one factor, finite and not negative, "
                              f"for every norm; for norms {list(PROBES)} it gave "
                              f"{factors.tolist()}")
        over = factors * norms > self.bound * (1 + 1e-12)
        if over.any():
            place = int(over.nonzero()[0])
            norm, clipped = PROBES[place], float(factors[place]) * PROBES[place]
            raise ConfigError(f"the clip function lets a norm of {norm} through at {clipped}, "
                              f"above its declared bound {self.bound}")

    def __repr__(self) -> str:
        return (f"Function({getattr(self.call, '__qualname__', type(self.call).__name__)}, "
                f"bound={self.bound})")

    @property
    def sensitivity(self) -> float:
        return self.bound

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return self.call(norms[0]).reshape(1)


class Adaptive(Clip):
    """`min(1, bound / norm)` with a bound that follows a quantile of the norms (Andrew et al.,
    arXiv 1905.03871).

    The sum comes out in units of the bound, so that its sensitivity is 1 at every step; the engine
    multiplies the noised sum by `bound`. Its count of norms below the bound gets noise of
    `count_noise` (standard deviation, default a twentieth of the expected batch) out of the same
    noise multiplier. Raises ConfigError.
    """

    def __init__(self, start: float = 1.0, quantile: float = 0.5, rate: float = 0.2,
                 count_noise: float | None = None) -> None:
        for value, name in ((start, "start"), (rate, "rate"), *(() if count_noise is None else
                                                                ((count_noise, "count_noise"), ))):
            _positive(value, name)
        if not _is_number(quantile) or not 0 < quantile < 1:
            raise ConfigError("quantile must be a number strictly between 0 and 1; got "
                              f"{quantile!r}")
        self.start, self.quantile, self.rate, self.count_noise = start, quantile, rate, count_noise
        self.bound = float(start)

    def __repr__(self) -> str:
        return (f"Adaptive(start={self.start}, quantile={self.quantile}, rate={self.rate}, "
                f"count_noise={self.count_noise})")

    @property
    def sensitivity(self) -> float:
        return 1.0

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.tensor(self.bound, dtype=torch.float64),)

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return torch.minimum(1.0 / inputs[0], 1.0 / norms)

    def below(self, norms: Tensor) -> float:
        """Returns the sum over examples of +-1/2: is its norm at most the bound? One example moves
        it by 1/2.
        """
        return float((norms <= self.bound).double().sub(0.5).sum())

    def update(self, share: float) -> None:
        """Moves the bound after a step whose noised share of norms below it was `share`."""
        self.bound *= math.exp(-self.rate * (share - self.quantile))


def as_rule(clip: object) -> Clip:
    """Returns the rule meant by `clip`: a number is a flat bound. Raises ConfigError."""
    if isinstance(clip, Clip):
        _positive(clip.sensitivity, "clip.sensitivity")
        return clip
    if isinstance(clip, bool) or not isinstance(clip, int | float):
        raise ConfigError("clip must be a number above 0 or a rule of fxperex.clipping; got "
                          f"{clip!r}")
    return Flat(float(clip))


def _each(norms: Tensor, bounds: Sequence[float]) -> Tensor:
    return torch.clamp(
        torch.tensor(bounds, dtype=norms.dtype, device=norms.device) / norms, max=1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any, name: str) -> None:
    if not (_is_number(value) and value > 0):
        raise ConfigError(f"{name} must be a finite number above 0; got {value!r}")
