"""What runs a step, fresh or loaded: a batch is checked, padded, run, and its sums are written.

Physical batches are static: a smaller one is padded and masked, an empty one is all mask, a larger
one runs as several. The only thing a step writes is `.grad` of the user's own parameters (and
buffers that the forward updates), at its very end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.compiler import Step
from fxperex.errors import FxperexError
from fxperex.numerics import rounding
from fxperex.ranks import ALONE, Ranks
from fxperex.ranks.shards import is_sharded, like
from fxperex.runtime import batches
from fxperex.runtime.batches import Rows
from fxperex.runtime.blame import blamed
from fxperex.runtime.model_state import compare, state
from fxperex.runtime.signature import StepSignature
from fxperex.runtime.step_result import StepResult
from fxperex.runtime.writes import write

BufferValues = list[tuple[str, Tensor, Tensor]]  # (name, buffer, its new value)


class StepRunner:
    """Runs `step`, which has `signature`, for `model`, on batches with any number of rows.

    filler: one legal row of each tensor, for empty batches.
    operands: how products of float32 rounded their operands when the step was made.
    program: gives the captured program, which an error message looks into; None without one.
    ranks: the processes whose sums a step adds up.
    """

    def __init__(self, model: nn.Module, signature: StepSignature, step: Step, filler: Rows,
                 operands: tuple[float, float],
                 program: Callable[[], fx.GraphModule] | None = None,
                 ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.model, self.signature, self.filler = model, signature, filler
        self._step, self._program = step, program
        named = dict(model.named_parameters(remove_duplicate=False))
        self.parameters: dict[str, nn.Parameter] = {n: named[n] for n in signature.trained}
        self.operands, self._state = operands, state(model)
        self.sharded = any(map(is_sharded, self.parameters.values()))

    def step(self, batch: Rows) -> StepResult:
        """Returns StepResult of `batch`; adds the clipped sums of all ranks to each `.grad`.

        Raises ShapeError, DataError or StateError; then nothing is written, on any rank.
        """
        with self.ranks.every("step"):
            self.check(batch)
        with self.ranks.every("step"):
            result, sums, buffers = self._summed(batch)
        if self.sharded:
            sums = [like(p, s) for p, s in zip(self.parameters.values(), sums, strict=True)]
        elif self.ranks.size > 1:
            totals = self.ranks.totals(sums, [s.dtype for s in sums])
            sums = totals.gathered([part.values for part in totals.parts])
        pairs = zip(self.parameters.items(), sums, strict=True)
        write([(n, p, s) for (n, p), s in pairs], buffers)
        return result

    def sums(self, batch: Rows) -> tuple[StepResult, list[Tensor]]:
        """Returns StepResult and the clipped sums, in the dtype they were formed in; writes no
        `.grad`. Raises as `step`.
        """
        result, sums, buffers = self._summed(batch)
        write((), buffers)
        return result, sums

    def by_row(self, step: Step, batch: Rows) -> list[Tensor]:
        """Returns the outputs, all by row, of another `step` that takes the same inputs."""
        self.check(batch)
        parts = [[value[:count] for value in self._attempt(step, rows, mask)]
                 for rows, mask, count in self._physical(batch)]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def check(self, batch: Sequence[object]) -> None:
        """Raises ShapeError unless `batch` is what the step takes, StateError as `check_model`."""
        batches.check(batch, self.signature.spec)
        self.check_model()

    def check_model(self) -> None:
        """Raises StateError if the model, or the precision of products, is another than it was.

        Parameters, buffers and training modes must be the same. Float32 products must not round
        their operands more than they did: no norm of this step covers that.
        """
        compare(self._state, state(self.model))
        rounding.refuse_coarser(self.operands, self.signature.spec[0][2])

    def _physical(self, batch: Rows) -> list[tuple[Rows, Tensor, int]]:
        pieces = batches.physical(batch, self.signature.rows, self.filler)
        if self.sharded:  # every piece is collective: all ranks run as many
            empty = batches.physical(tuple(x[:0] for x in batch), self.signature.rows, self.filler)
            pieces += empty * (self.ranks.highest(len(pieces)) - len(pieces))
        return pieces

    def _summed(self, batch: Rows) -> tuple[StepResult, list[Tensor], BufferValues]:
        """Result, sums and new values of buffers; writes nothing."""
        self.check(batch)
        sums: list[Tensor] | None = None
        parts: list[list[Tensor]] = [[], [], []]
        values: Sequence[Any] = ()
        for rows, mask, count in self._physical(batch):
            outputs = self._attempt(self._step, rows, mask)
            by_row, formed, values = self.signature.split(outputs)
            sums = _own(formed) if sums is None else [
                s.add_(f) for s, f in zip(sums, formed, strict=True)
            ]
            for part, value in zip(parts, by_row, strict=True):
                part.append(value[:count].clone())
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        pairs = zip(self.signature.mutated, values, strict=False)
        changed = [(n, buffers[n], value) for n, value in pairs]
        return StepResult(*(torch.cat(p) for p in parts)), sums or [], changed

    def _attempt(self, step: Step, rows: Rows, mask: Tensor) -> Sequence[Any]:
        """The outputs of `step`. Raises DataError for an error about values of the batch."""
        inputs = self.signature.of_model(self.model, rows, mask)
        try:
            return step(*inputs)
        except (FxperexError, Warning):
            raise
        except Exception as error:  # each operation fails in its own way
            captured = inputs[:len(self.signature.inputs)]
            raise blamed(error, self._program, captured, rows) from error


def _own(formed: Sequence[Tensor]) -> list[Tensor]:
    # A CUDA graph writes the same memory at every replay; elsewhere the outputs are ours.
    return [s.clone() for s in formed] if formed[0].is_cuda else list(formed)
