"""Sites, costs, the two protocols (layer kind, strategy) and the two tables.

Letters, defined once: B examples, G groups, T positions, D inputs per group, P outputs per group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx

from fxperex.errors import ConfigError


@dataclass(frozen=True)
class BatchAxis:
    """Where the examples are: dimension `dim` of size `outer * B * inner`, B-major inside `inner`.

    `fresh`: all entries of `dim` are alike (zeros, random numbers) and no example reaches them, so
    any factorisation holds. `rows`: the values are the row numbers themselves (`arange(B)`).
    `fxperex.analysis.state` has the definitions.
    """

    dim: int
    outer: int = 1
    inner: int = 1
    fresh: bool = False
    rows: bool = False

    @property
    def place(self) -> tuple[int, int, int]:
        return (self.dim, self.outer, self.inner)

    def moved(self, dim: int) -> BatchAxis:
        return BatchAxis(dim, self.outer, self.inner, self.fresh, self.rows)


@dataclass(frozen=True)
class Dims:
    """Shapes of a site's factors: `a [B,G,T,D]`, `g [B,G,T,P]`, `grad_b = g_b^T a_b`.

    Of a convolution also its `taps` (D = inputs per group * taps) and the `pixels` of an example's
    one image.
    """

    B: int
    G: int
    T: int
    D: int
    P: int
    taps: int = 1
    pixels: int = 0


@dataclass(frozen=True)
class Site:
    """One use of a parameter-only tensor by a node that carries the batch.

    `name` is the parameter's qualified name (with `@2`, `@3` for further uses); `weight` the graph
    node of the parameter-only tensor; `arg` its place in the flat arguments of `node`; `isometric`:
    the pull-back to the parameters keeps norms; `alone`: no other site reaches the same parameter
    entries.

    Several uses of one tensor by nodes of one kind are one site, whose `parts` they are and whose T
    is the sum of theirs; `turned` marks a part that takes the tensor transposed. Names and places
    are those of its first part.
    """

    name: str
    node: str
    weight: str
    arg: int
    kind: str
    op: str
    params: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int
    dims: Dims | None = None
    isometric: bool = True
    alone: bool = True
    where: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parts: tuple[Site, ...] = ()
    turned: bool = False
    outputs: int = 0  # elements of the node's outputs

    @property
    def each(self) -> tuple[Site, ...]:
        """The uses: its parts, or itself."""
        return self.parts or (self,)

    @property
    def direct_norm(self) -> bool:
        """True where the squared norm of the parameters' gradient is the sum over sites."""
        return self.isometric and self.alone

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


def at_rows(site: Site, rows: int) -> Site:
    """Returns `site` with `rows` examples."""
    dims = site.dims and replace(site.dims, B=rows)
    parts = tuple(at_rows(part, rows) for part in site.parts)
    return replace(site, rows=rows, dims=dims, outputs=site.outputs * rows // max(site.rows, 1),
                   parts=parts)


@dataclass(frozen=True)
class Work:
    """Calls of one kernel class (`devices.KERNELS`): the amount of one, in flop or bytes, at
    `shape`.
    """

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


@dataclass
class Uses:
    """Values of one site while the step graph is traced.

    `node`: the captured node; `args`: its evaluated flat arguments (weights included); `axes`:
    their batch axes; `grad`: gradient of the summed loss with respect to the node's (first) output;
    `out_axis`; `cache`: what is formed once for the site, and under `"node"` what is formed once
    for all sites of the node. A site with parts has them here too, and neither arguments nor
    gradients of its own.
    """

    site: Site
    node: fx.Node
    args: list[Any]
    axes: list[BatchAxis | None]
    call: Callable[..., Any]
    out_axis: BatchAxis
    grads: list[Tensor | None]
    cache: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Uses, ...] = ()

    @property
    def grad(self) -> Tensor:
        assert self.grads[0] is not None
        return self.grads[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the output gradients."""
        return self.each[0].grad.dtype

    @property
    def each(self) -> tuple[Uses, ...]:
        """The uses: its parts, or itself."""
        return self.parts or (self,)


class LayerKind(Protocol):
    """How one kind of node uses a parameter. Registered by `@layer_kind("name", ops)`.

    `reads_inputs = False` is said by a kind whose gradients follow from the node's output gradients
    alone.
    """

    name: str
    ops: tuple[str, ...]

    def claims(self, node: fx.Node, arg: int) -> bool:
        """True where this kind knows argument `arg` of `node` exactly, options included."""
        ...

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims | None:
        """Shapes of the factors, or None where the kind has none."""
        ...


class Strategy(Protocol):
    """One way to per-example gradients. Registered by `@strategy("name")`.

    `stores`: False where `stored` never forms them; such a strategy cannot serve a parameter with
    several uses.
    """

    name: str
    stores: bool

    def illegal(self, site: Site) -> str | None:
        """None, or the reason why this strategy cannot serve `site`."""
        ...

    def cost(self, site: Site) -> Cost: ...

    def stored(self, uses: Uses) -> Tensor | None:
        """Per-example gradients `[B, *shape]`, or None where the strategy never forms them."""
        ...

    def sq_norm(self, uses: Uses) -> Tensor:
        """Squared norms `[B]`, float64, never below the true ones but for rounding."""
        ...

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        """`sum_b factors[b] grad_b`, the shape of the weight; rows with `valid` False add
        nothing.
        """
        ...


_KINDS: dict[str, Any] = {}
_STRATEGIES: dict[str, Any] = {}
_T = TypeVar("_T", bound=type)


def _register(table: dict[str, Any], name: str, what: str) -> Callable[[_T], _T]:
    def add(cls: _T) -> _T:
        if name in table:
            raise ConfigError(f"{what} {name!r} is registered already, by "
                              f"{type(table[name]).__module__}")
        instance = cls()
        instance.name = name
        table[name] = instance
        return cls

    return add


def layer_kind(name: str) -> Callable[[_T], _T]:
    """Class decorator: adds a layer kind to the table under `name`. A duplicate raises
    ConfigError.
    """
    return _register(_KINDS, name, "layer kind")


def strategy(name: str) -> Callable[[_T], _T]:
    """Class decorator: adds a strategy to the table under `name`. A duplicate raises
    ConfigError.
    """
    return _register(_STRATEGIES, name, "strategy")


def kinds() -> dict[str, Any]:
    """Returns {name: layer kind}, in order of registration; `generic` comes last.

    `fxperex.transform` imports the library's own, and `import fxperex` imports that.
    """
    return {k: v for k, v in sorted(_KINDS.items(), key=lambda item: item[0] == "generic")}


def reads_inputs(kind: str) -> bool:
    """True for a layer kind whose per-example gradients read the node's input."""
    return bool(getattr(kinds()[kind], "reads_inputs", True))


def strategies() -> dict[str, Any]:
    """Returns {name: strategy}, in order of registration; see `kinds`."""
    return dict(_STRATEGIES)
