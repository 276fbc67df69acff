"""Every product with a parameter as one sum over named dimensions: `out = sum_D x[left] w[right]`.

A letter's role follows from where it stands:

| role | in x | in w | in out | in `a [B,G,T,D]`, `g [B,G,T,P]` |
|---|---|---|---|---|
| G | yes | yes | yes | groups: batched weights, attention heads |
| D | yes | yes | no | summed over: inputs |
| P | no | yes | yes | outputs |
| T | yes | no | yes | positions, and the batch |

A product with a letter of another role (summed out of one factor alone, a diagonal) is not one of these.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

from torch import Tensor, fx

from fxperex.layers.shapes import packet
from fxperex.registry import BatchAxis

# op -> flat places of its two factors
PAIRS = {"linear": (0, 1), "matmul": (0, 1), "mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "addmm": (1, 2),
         "baddbmm": (1, 2), "einsum": (1, 2)}


@dataclass(frozen=True)
class Product:
    """`x`: flat place of the other factor; one letter per dimension; `sizes` of the letters.

    A dimension of size 1 that is broadcast has the letter `.` and no role.
    """

    x: int
    left: str
    right: str
    out: str
    sizes: dict[str, int]

    def role(self, letter: str) -> str:
        at = tuple(letter in term for term in (self.left, self.right, self.out))
        return {(True, True, True): "G", (True, True, False): "D", (False, True, True): "P", (True, False, True): "T"}.get(at, "")

    def letters(self, role: str) -> str:
        """Letters of a role: positions in the order of x, all others in the order of the weight."""
        seen = self.left if role == "T" else self.right
        return "".join(k for k in seen if k != "." and self.role(k) == role)

    def size(self, role: str) -> int:
        return math.prod(self.sizes[k] for k in self.letters(role))

    @property
    def layout(self) -> str:
        """Role of every dimension of the weight, `.` for one of size 1 that is broadcast."""
        return "".join("." if k == "." else self.role(k) for k in self.right)


def product(node: fx.Node, arg: int) -> Product | None:
    """Returns argument `arg` of `node` as the weight of a Product, or None where it is none."""
    places = PAIRS.get(packet(node))
    if places is None or arg not in places or _options(node):
        return None
    terms = _equation(node)
    if terms is None:
        return None
    one, two, out = terms
    first, second = _factors(node)
    x, left, right = (places[1], two, one) if arg == places[0] else (places[0], one, two)
    inputs, weight = (second, first) if arg == places[0] else (first, second)
    return _checked(x, left, right, out, tuple(inputs.meta["val"].shape), tuple(weight.meta["val"].shape))


def _checked(x: int, left: str, right: str, out: str, inputs: tuple[int, ...], weight: tuple[int, ...]) -> Product | None:
    if any(len(set(term)) < len(term) for term in (left, right, out)):
        return None  # a diagonal
    sizes: dict[str, int] = {}
    for term, shape in ((left, inputs), (right, weight)):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    left = "".join("." if s < sizes[k] else k for k, s in zip(left, inputs, strict=True))
    right = "".join("." if s < sizes[k] else k for k, s in zip(right, weight, strict=True))
    made = Product(x, left, right, out, sizes)
    return made if all(k == "." or made.role(k) for k in left + right) else None


def _options(node: fx.Node) -> bool:
    """True where scale factors or a contraction path are given."""
    return any(v is not None for v in node.kwargs.values())


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    if packet(node) == "einsum":
        return tuple(node.args[1])  # type: ignore[return-value]
    one, two = PAIRS[packet(node)]
    return node.args[one], node.args[two]  # type: ignore[return-value]


def _equation(node: fx.Node) -> tuple[str, str, str] | None:
    """Letters of the two factors and the output, in the operation's own order."""
    if packet(node) == "einsum":
        operands: list[fx.Node] = node.args[1]  # type: ignore[assignment]
        terms, out = spelled(str(node.args[0]), [f.meta["val"].dim() for f in operands])
        return (terms[0], terms[1], out) if len(terms) == 2 else None
    one, two = (len(f.meta["val"].shape) for f in _factors(node))
    names = iter(string.ascii_letters)
    if packet(node) == "linear":
        rest, d, p = "".join(next(names) for _ in range(one - 1)), next(names), next(names)
        return (rest + d, p + d, rest + p) if two == 2 else None
    m, k, n = next(names), next(names), next(names)
    batch = "".join(next(names) for _ in range(max(one, two, 2) - 2))
    left = batch[len(batch) - one + 2:] + m + k if one > 1 else k
    right = batch[len(batch) - two + 2:] + k + n if two > 1 else k
    return left, right, batch + (m if one > 1 else "") + (n if two > 1 else "")


def spelled(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Returns the terms of an einsum and its output: letters for every ellipsis, and the output where it is implied."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    widths = [rank - len(term) + 3 if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    spare = [k for k in string.ascii_letters if k not in equation][:max(widths)]
    if not arrow:
        once = sorted(k for k in inputs if k.isalpha() and inputs.count(k) == 1)
        out = ("..." if any(widths) else "") + "".join(once)
    terms = [term.replace("...", "".join(spare[len(spare) - width:])) for term, width in zip(terms, widths, strict=True)]
    return terms, out.replace("...", "".join(spare))


def arranged(x: Tensor, term: str, order: list[str], sizes: dict[str, int], axis: BatchAxis, rows: int) -> Tensor:
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
    return grads.permute(0, *(1 + order.index(k) for k in p.right if k != ".")).reshape(len(grads), *shape)
