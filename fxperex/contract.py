"""The contract: what a layer kind and a strategy are.

A layer kind says how one kind of node uses a parameter. A strategy is one way to per-example
gradients. `fxperex.registry` has the tables of both.

| a layer kind that is also | has | serves |
|---|---|---|
| `ClosedForm` | a formula for its per-example gradients | `direct` |
| `HasGram` | Gram matrices of the factors a, g of `grad_b = g_b^T a_b`, and the sum | `ghost` |
| `Factored` | those factors as dense tensors | `unfold`, `outer`, `fused` |
| `Flat` | the factors of all examples as two matrices | one product for several uses |
| `Lookup` | integers that choose rows of the parameter | `direct`, `ghost` |
| `layers.windows.Windowed` | windows that slide over an image | `crb` |

All others are served by `multi` and `vmap`, which differentiate the node itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.costs import Cost
from fxperex.numerics.factors import Factor, OneHot, inner
from fxperex.sites import BatchAxis, Dims, Site, SiteValues

LATE = 1000  # the default order in the tables: after the library's own, before `generic`
Sample = tuple[nn.Module, tuple[Tensor, ...]]


class LayerKind(ABC):
    """How one kind of node uses a parameter. Registered by `@layer_kind("name")`.

    reads_inputs: False if its gradients follow from the node's output gradients alone.
    sparse: True if integers choose rows of the parameter.
    one_product: True if a term of its gradient is one product of two numbers; otherwise up to
    three roundings are allowed for (`numerics.rounding`).
    complex_numbers: True if it is right for complex tensors too.
    """

    name = ""
    order = LATE
    reads_inputs = True
    sparse = False
    one_product = False
    complex_numbers = False

    @abstractmethod
    def claims(self, node: fx.Node, arg: int) -> bool:
        """Returns True if this kind knows flat argument `arg` of `node` exactly, options too."""

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims | None:
        """Returns the shapes of the factors for `rows` examples; None if it has none."""
        return None

    def layout(self, node: fx.Node, arg: int) -> Hashable:
        """Returns what must be equal for two uses of one tensor to be joined."""
        return None

    def example_output(self, values: SiteValues, arguments: list[Any], weight: Tensor) -> Any:
        """Returns the node's output for one example's `arguments`, with `weight` at the site.

        A kind whose output depends on the weight in a simpler way may return that part alone.
        """
        replaced = list(arguments)
        replaced[values.site.arg] = weight
        return values.call(replaced)

    def output_passes(self, site: Site) -> int:
        """Returns how often a closed formula reads or writes a tensor of the output's size."""
        return 4

    def by_convolution(self, site: Site) -> bool:
        """Returns True if the ordinary weight gradient is a convolution's own, no product."""
        return False

    def samples(self) -> list[Sample]:
        """Returns small (module, batch) pairs that reach this kind, for tests and checks."""
        return []


class ClosedForm(LayerKind):
    """A kind with a formula for its per-example gradients."""

    @abstractmethod
    def per_example(self, values: SiteValues) -> Tensor:
        """Returns per-example gradients `[B, *weight shape]`."""


class HasGram(LayerKind):
    """A kind whose per-example gradient is `g_b^T a_b`, so that Gram matrices give its norm."""

    @abstractmethod
    def factors(self, values: SiteValues) -> tuple[Factor, Factor]:
        """Returns `(a, g)`."""

    def gram(self, values: SiteValues) -> Tensor:
        """Returns `<a_t, a_s>` `[B,G,T,T]`, float64."""
        a = self.factors(values)[0]
        return inner(a, a)

    def out_gram(self, values: SiteValues) -> Tensor:
        """Returns `<g_t, g_s>` `[B,G,T,T]`, float64."""
        g = self.factors(values)[1]
        return inner(g, g)

    @abstractmethod
    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        """Returns `sum_b factors[b] grad_b`, the weight's shape; invalid rows add nothing."""


class Factored(HasGram):
    """A kind with dense factors `a [B,G,T,D]`, `g [B,G,T,P]`; `dims` returns their shapes."""

    @abstractmethod
    def factors(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        """Returns `(a, g)`; both dense."""

    @abstractmethod
    def fold(self, values: SiteValues, grads: Tensor) -> Tensor:
        """Returns gradients `[N,G,P,D]` as `[N, *weight shape]`."""

    def outputs(self, values: SiteValues) -> Tensor:
        """Returns `g [B,G,T,P]`."""
        return self.factors(values)[1]

    def out_gram(self, values: SiteValues) -> Tensor:
        g = self.outputs(values)
        return inner(g, g)

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        a, g = self.factors(values)
        counts, zero = valid[:, None, None, None], torch.zeros((), dtype=g.dtype, device=g.device)
        scaled = torch.where(counts, g * factors.to(g.dtype)[:, None, None, None], zero)
        a = torch.where(counts, a, zero.to(a.dtype))
        # One product per group over the positions of all examples.
        flat_g, flat_a = (x.movedim(1, 0).flatten(1, 2) for x in (scaled, a.to(g.dtype)))
        return self.fold(values, (flat_g.transpose(1, 2) @ flat_a)[None])[0]


class Flat(Factored):
    """A factored kind whose sum over all examples is one product of two matrices per group."""

    @abstractmethod
    def flat(self, values: SiteValues, factors: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `a [G,N,D]` and scaled `g [G,N,P]` of all examples; invalid ones' g is zero."""

    @abstractmethod
    def summed(self, values: SiteValues, a: Tensor, g: Tensor, valid: Tensor) -> Tensor:
        """Returns `g^T a` of flat factors, in the weight's shape."""

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        return self.summed(values, *self.flat(values, factors, valid), valid)


class Lookup(HasGram, ClosedForm):
    """A kind whose input chooses rows of the parameter: a is one-hot and never written out."""

    sparse = True

    @abstractmethod
    def tokens(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        """Returns ids `[B,T]` and output gradients `[B,T,P]`."""

    def factors(self, values: SiteValues) -> tuple[Factor, Factor]:
        """Returns `(a, g)`: a factor that is never written out, and `g [B,1,T,P]`."""
        ids, g = self.tokens(values)
        return OneHot(ids, values.site.shape[0]), g[:, None]


class Strategy(ABC):
    """One way to per-example gradients. Registered by `@strategy("name")`.

    stores: False if `stored` never forms them; such a strategy cannot serve a parameter with
    several uses.
    """

    name = ""
    order = LATE
    stores = False

    @abstractmethod
    def illegal(self, site: Site) -> str | None:
        """Returns None, or the reason why this strategy cannot serve `site`."""

    @abstractmethod
    def cost(self, site: Site) -> Cost:
        """Returns what it costs at `site`; asked only if it is legal there."""

    def stored(self, values: SiteValues) -> Tensor | None:
        """Returns per-example gradients `[B, *shape]`; None if the strategy never forms them."""
        return None

    @abstractmethod
    def sq_norm(self, values: SiteValues) -> Tensor:
        """Returns squared norms `[B]`, float64, never below the true ones but for rounding."""

    @abstractmethod
    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        """Returns `sum_b factors[b] grad_b`, the weight's shape; invalid rows add nothing."""
