"""Every product with a parameter as one sum over named dimensions: `out = sum_D x[input]
w[weight]`.

A letter's role follows from where it stands:

| role | in x | in w | in out | in `a [B,G,T,D]`, `g [B,G,T,P]` |
|---|---|---|---|---|
| G | yes | yes | yes | groups: batched weights, attention heads |
| D | yes | yes | no | summed over: inputs |
| P | no | yes | yes | outputs |
| T | yes | no | yes | positions, and the batch |

A product with a letter of another role (summed out of one factor alone, a diagonal) is not one of
these.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

from torch import Tensor, fx

from fxperex.graph.aten import packet
from fxperex.sites import BatchAxis

# op -> positions of its two factors among the arguments
PAIRS = {
    "linear": (0, 1), "matmul": (0, 1), "mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "addmm": (1, 2),
    "baddbmm": (1, 2), "einsum": (1, 2)
}


# Whether a letter is in the input, in the weight, in the output -> its role
ROLES = {(True, True, True): "G", (True, True, False): "D", (False, True, True): "P",
         (True, False, True): "T"}


@dataclass(frozen=True)
class Product:
    """The letters of the input, the weight and the output, one per dimension.

    `x`: position of the input among the arguments; `sizes`: the size of each letter. A dimension of
    size 1 that is broadcast has the letter `.` and no role.
    """

    x: int
    input: str
    weight: str
    out: str
    sizes: dict[str, int]

    def role(self, letter: str) -> str:
        """Returns "G", "D", "P" or "T", or "" if the letter has no role."""
        return ROLES.get(tuple(letter in term for term in (self.input, self.weight, self.out)), "")

    def letters(self, role: str) -> str:
        """Returns the letters of a role: positions in the order of x, others in that of the
        weight.
        """
        term = self.input if role == "T" else self.weight
        return "".join(k for k in term if k != "." and self.role(k) == role)

    def size(self, role: str) -> int:
        return math.prod(self.sizes[k] for k in self.letters(role))

    @property
    def layout(self) -> str:
        """Returns the role of each dimension of the weight, `.` for a broadcast one of size 1."""
        return "".join("." if k == "." else self.role(k) for k in self.weight)


def product(node: fx.Node, arg: int) -> Product | None:
    """Returns argument `arg` of `node` as the weight of a Product; None if it is not one."""
    positions = PAIRS.get(packet(node))
    if positions is None or arg not in positions or _has_options(node):
        return None
    terms = _equation(node)
    if terms is None:
        return None
    place = positions.index(arg)
    factors = _factors(node)
    shapes = [tuple(factor.meta["val"].shape) for factor in factors]
    return _checked(positions[1 - place], (terms[1 - place], terms[place], terms[2]),
                    shapes[1 - place], shapes[place])


def _checked(x: int, terms: tuple[str, str, str], input_shape: tuple[int, ...],
             weight_shape: tuple[int, ...]) -> Product | None:
    """Returns the Product of `terms` (input, weight, output); None if a letter has no role."""
    if any(len(set(term)) < len(term) for term in terms):
        return None  # a diagonal
    sizes: dict[str, int] = {}
    for term, shape in zip(terms[:2], (input_shape, weight_shape), strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))

    def without_broadcast(term: str, shape: tuple[int, ...]) -> str:
        return "".join("." if size < sizes[k] else k for k, size in zip(term, shape, strict=True))

    candidate = Product(x, without_broadcast(terms[0], input_shape),
                        without_broadcast(terms[1], weight_shape), terms[2], sizes)
    return candidate if all(
        k == "." or candidate.role(k) for k in candidate.input + candidate.weight) else None


def _has_options(node: fx.Node) -> bool:
    """Returns True if the node has scale factors or a contraction path."""
    return any(v is not None for v in node.kwargs.values())


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    if packet(node) == "einsum":
        return tuple(node.args[1])  # type: ignore[return-value]
    i, j = PAIRS[packet(node)]
    return node.args[i], node.args[j]  # type: ignore[return-value]


def _equation(node: fx.Node) -> tuple[str, str, str] | None:
    """Returns the letters of the two factors and of the output, in the operation's own order."""
    if packet(node) == "einsum":
        operands: list[fx.Node] = node.args[1]  # type: ignore[assignment]
        terms, out = spelled(str(node.args[0]), [f.meta["val"].dim() for f in operands])
        return (terms[0], terms[1], out) if len(terms) == 2 else None
    ranks = [factor.meta["val"].dim() for factor in _factors(node)]
    names = iter(string.ascii_letters)
    if packet(node) == "linear":
        positions, d, p = "".join(
            next(names) for _ in range(ranks[0] - 1)), next(names), next(names)
        return (positions + d, p + d, positions + p) if ranks[1] == 2 else None
    m, k, n = next(names), next(names), next(names)
    batch = "".join(next(names) for _ in range(max(*ranks, 2) - 2))
    # A vector has the summed letter alone.
    terms = [
        batch[len(batch) - rank + 2:] + own if rank > 1 else k
        for rank, own in zip(ranks, (m + k, k + n), strict=True)
    ]
    return terms[0], terms[1], batch + (m if ranks[0] > 1 else "") + (n if ranks[1] > 1 else "")


def spelled(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Returns the terms of an einsum and its output, with ellipses and an implied output spelled
    out.
    """
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    widths = [
        rank - len(term) + 3 if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    ]
    spare = [k for k in string.ascii_letters if k not in equation][:max(widths)]
    if not arrow:
        once = sorted(k for k in inputs if k.isalpha() and inputs.count(k) == 1)
        out = ("..." if any(widths) else "") + "".join(once)
    terms = [
        term.replace("...", "".join(spare[len(spare) - width:]))
        for term, width in zip(terms, widths, strict=True)
    ]
    return terms, out.replace("...", "".join(spare))


def arranged(x: Tensor, term: str, order: list[str], sizes: dict[str, int], axis: BatchAxis,
             rows: int) -> Tensor:
    """Returns `x` with one dimension for each group of letters in `order`.

    `*` stands for the examples, `<` and `>` for the positions that share their dimension.
    """
    extent = {**sizes, "<": axis.outer, "*": rows, ">": axis.inner}
    letters = ""
    shape: list[int] = []
    for place, (letter, size) in enumerate(zip(term, x.shape, strict=True)):
        if place == axis.dim:
            letters, shape = letters + "<*>", [*shape, axis.outer, rows, axis.inner]
        elif letter != ".":
            letters, shape = letters + letter, [*shape, size]
    x = x.reshape(shape).permute([letters.index(k) for group in order for k in group])
    return x.reshape([math.prod(extent[k] for k in group) for group in order])


def unarranged(grads: Tensor, p: Product, shape: tuple[int, ...]) -> Tensor:
    """Returns `[N, *shape]`, gradients of the weight, of `[N,G,P,D]`."""
    order = p.letters("G") + p.letters("P") + p.letters("D")
    grads = grads.reshape(len(grads), *(p.sizes[k] for k in order))
    return grads.permute(0, *(1 + order.index(k) for k in p.weight if k != ".")).reshape(
        len(grads), *shape)
