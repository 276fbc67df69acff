"""Is a compiled step the eager one? Both run on the same inputs with the same draws, and every
output is compared.

A compiler can be wrong without a word (a write lost, memory of the call before, a mask forgotten),
and a sum that is wrong is not bounded by the clip rule either. So what is not the eager graph is
compared with it on rows that stand in for data before its first use, and once more on the first
batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.compiler.noise import DRAWS, MORE, shaken, unit
from fxperex.compiler.out_of_memory import ended
from fxperex.graph.provenance import Made, made_for

Step = Callable[..., Sequence[Any]]
SLIGHT = 32.0  # units of rounding that no output needs an excuse for
SAFETY = 8.0  # how much further than the perturbed runs' furthest an output may be
# what a norm, and all else, may be off by in any case: shorter gradients may read as zero
# (`config`)
TINY = 1e-10


@dataclass(frozen=True)
class Check:
    """Compares steps with the eager `graph`. names: of its outputs; the first `by_row` hold one
    number or row per example.
    """

    graph: fx.GraphModule
    names: Sequence[str] = ()
    by_row: int = 0
    unit: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", unit(self.graph))

    def eager(self, *inputs: Tensor) -> list[Any]:
        """Returns the eager graph's outputs."""
        with torch.no_grad():
            return list(self.graph(*inputs))

    def __call__(self, step: Step, inputs: Sequence[Tensor],
                 kind: str) -> tuple[str, Sequence[Any]]:
        """Returns ("", outputs of `step`), or (what differs, outputs of the eager graph), and
        leaves `inputs` as they were.

        Random draws are the same in both, and torch's generators end where one run ends. Raises
        what the eager graph raises.
        """
        start = _draws(inputs)
        expected = self.eager(*inputs)
        before = [x.clone() for x in inputs]
        _draw_again(start)
        try:
            outputs = list(step(*inputs))
        except Exception as error:  # compiled code fails in its own many ways
            if ended(error):
                raise
            return (f"it raises {type(error).__name__} on {kind}, which the eager step does not: "
                    f"{error}"), expected
        finally:
            spoilt = [
                i for i, (x, old) in enumerate(zip(inputs, before, strict=True))
                if not _equal(x, old)
            ]
            for i in spoilt:
                inputs[i].copy_(before[i])
        end = _draws(inputs)
        if spoilt:
            names = [n.name for n in self.graph.graph.find_nodes(op="placeholder")]
            return f"it overwrites its input {names[spoilt[0]]} on {kind}", expected
        del before
        try:
            text = self._difference(expected, outputs, inputs, start, kind)
        finally:
            _draw_again(end)
        return text, expected if text else outputs

    def _difference(self, want: list[Any], found: list[Any], inputs: Sequence[Tensor], start: Any,
                    kind: str) -> str:
        if len(found) != len(want):
            return f"it has {len(found)} outputs, the eager step {len(want)}"
        for i, (a, b) in enumerate(zip(want, found, strict=True)):
            if a.shape != b.shape or a.dtype != b.dtype:
                return (f"{self._told(i)} is {b.dtype} {list(b.shape)} on {kind}, eagerly "
                        f"{a.dtype} {list(a.shape)}")
        far = [self._distance(i, a, b) for i, (a, b) in enumerate(zip(want, found, strict=True))]
        allowed = self._allowed_free(want)
        for draws in (range(0), range(DRAWS), range(DRAWS, DRAWS + MORE)):
            # What rounding explains is measured only where something is further off than any
            # rounding needs an excuse for.
            allowed = self._widened(allowed, want, inputs, start, draws)
            wrong = [
                i for i, (d, limit) in enumerate(zip(far, allowed, strict=True))
                if not bool((d <= limit).all())
            ]
            if not wrong:
                return ""
        return self._text(wrong[0], want, far, allowed, kind)

    def tolerated(self, inputs: Sequence[Tensor]) -> tuple[list[Any], list[Tensor]]:
        """Returns the eager outputs on `inputs`, and how far another's may be from each: by row, or
        in the Euclidean norm.
        """
        start = _draws(inputs)
        expected = self.eager(*inputs)
        end = _draws(inputs)
        allowed = self._widened(self._allowed_free(expected), expected, inputs, start,
                                range(DRAWS + MORE))
        _draw_again(end)
        return expected, allowed

    def _allowed_free(self, want: list[Any]) -> list[Tensor]:
        total = sum(float(_size(w)) ** 2 for w in want[self.by_row:]) ** 0.5
        return [self._free(i, w, total) for i, w in enumerate(want)]

    def _widened(self, allowed: list[Tensor], want: list[Any], inputs: Sequence[Tensor], start: Any,
                 draws: range) -> list[Tensor]:
        """`allowed`, or SAFETY times the distance of the furthest of some shaken runs where that is
        more.
        """
        for seed in draws:
            _draw_again(start)
            moved = shaken(self.graph, inputs, self.unit, seed)
            allowed = [torch.maximum(old, SAFETY * self._spread(i, w, s))
                       for i, (old, w, s) in enumerate(zip(allowed, want, moved, strict=True))]
        return allowed

    def _distance(self, i: int, a: Tensor, b: Tensor) -> Tensor:
        """How far two values of output i are apart: by row, or as one tensor; two that are not
        finite are equal.
        """
        if i >= self.by_row:
            return _size(a, b)
        a, b = a.double(), b.double()
        same = ~torch.isfinite(a) & ~torch.isfinite(b)
        return torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf, torch.inf)

    def _free(self, i: int, want: Tensor, total: float) -> Tensor:
        """The distance that needs no excuse: some units of rounding of its own, one of the largest
        row's or the whole sum's.
        """
        scale = want.double().abs().nan_to_num(0.0, 0.0) if i < self.by_row else _size(want)
        largest = scale.amax() if i < self.by_row and scale.numel() else total
        exact = not want.dtype.is_floating_point
        return torch.zeros_like(
            scale) if exact else self.unit * (SLIGHT * scale + largest) + TINY * (i < self.by_row)

    def _spread(self, i: int, want: Tensor, shifted: Tensor) -> Tensor:
        """The distance of a perturbed run; a row that moved little by chance counts as the median
        one.
        """
        far = self._distance(i, want, shifted)
        if i >= self.by_row or not far.numel():
            return far
        scale = want.double().abs().nan_to_num(0.0, 0.0)
        return torch.maximum(far, scale * (far / scale.clamp(min=TINY)).median())

    def _text(self, i: int, want: list[Any], far: list[Tensor], allowed: list[Tensor],
              kind: str) -> str:
        excess = far[i] - allowed[i]
        place = int(excess.nan_to_num(torch.inf, torch.inf).argmax()) if excess.dim() else 0
        row = f" of row {place if far[i].dim() == 1 else place // far[i].shape[1]}" if far[i].dim(
        ) else ""
        size = float(want[i].double().abs().reshape(-1)[place] if i <
                     self.by_row else _size(want[i]))
        return (f"{self._told(i)}{row} is off by {float(far[i].reshape(-1)[place]):.2g} on "
                f"{kind}, and rounding explains {float(allowed[i].reshape(-1)[place]):.2g} (its "
                f"size is {size:.2g})")

    def _told(self, i: int) -> str:
        """Output i by name, with the node and the site it comes from."""
        outputs = self.graph.graph.output_node().args[0]
        node = outputs[i] if isinstance(outputs, tuple | list) else outputs
        name = self.names[i] if i < len(self.names) else f"output {i}"
        mark = _mark(node)
        return (
            f"{name} (node {node.name}{f', site {mark}' if mark else ''})")


def first_difference(check: Check, step: Step, tries: Iterable[tuple[str, list[Tensor]]]) -> str:
    """Returns what differs first on `tries`, '' if nothing; kinds that the eager graph cannot run
    are left out.
    """
    ran = 0
    for kind, inputs in tries:
        try:
            text, _ = check(step, inputs, kind)
        except Exception as error:  # rows that the model cannot take
            if ended(error):
                raise
            continue
        ran += 1
        if text:
            return text
    return ("" if ran else "no rows are at hand that the eager step can run on, so it could not "
                           "be compared")


def _mark(node: fx.Node) -> Made | None:
    todo, visited = deque([node]), {node}
    while todo:
        current = todo.popleft()
        if mark := made_for(current):
            return mark
        todo.extend(n for n in current.all_input_nodes if n not in visited)
        visited.update(current.all_input_nodes)
    return None


def _size(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Euclidean norm of `a`, or of `a - b`, float64; whole numbers are equal or infinitely far
    apart.
    """
    if not a.dtype.is_floating_point:
        return torch.tensor(0.0 if b is None or torch.equal(a, b) else torch.inf,
                            dtype=torch.float64, device=a.device)
    x = a if b is None else torch.where(torch.isfinite(a) | torch.isfinite(b), a - b, 0.0)
    return torch.linalg.vector_norm(x, dtype=torch.float64).nan_to_num(torch.inf, torch.inf)


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _draws(inputs: Sequence[Tensor]) -> list[tuple[torch.device | None, Tensor]]:
    """The states of the generators that a step on `inputs` draws from."""
    states: list[tuple[torch.device | None, Tensor]] = [(None, torch.get_rng_state())]
    return states + [(d, torch.cuda.get_rng_state(d))
                     for d in {x.device
                               for x in inputs
                               if x.is_cuda}]


def _draw_again(states: list[tuple[torch.device | None, Tensor]]) -> None:
    for device, state in states:
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
