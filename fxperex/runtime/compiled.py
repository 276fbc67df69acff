"""Step graph -> the step as it runs: compiled, compared with the eager graph, and guarded against
running out of memory.

It is compared on rows that stand in for data before its first use, and once more on the first real
batch. If they differ there, the step is eager from then on, and a BackendWarning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.compiler import Check, Forecast, Step, compile_step, forecast, guarded, tries
from fxperex.devices import hold_heap
from fxperex.errors import BackendWarning
from fxperex.graph.step_graph import StepGraph
from fxperex.memory.liveness import listing, peak
from fxperex.plan.plan import Plan
from fxperex.runtime import batches
from fxperex.runtime.batches import Rows
from fxperex.runtime.later import Later
from fxperex.runtime.signature import BY_ROW, StepSignature

KEPT = 8  # rows of the batch that compiled steps are tried on


class CompiledStep:
    """A step that runs: called with the inputs of its graph, it returns the outputs.

    signature: its inputs and outputs; backend: what runs it; filler: one legal row of each tensor.
    """

    def __init__(self, step: Step, backend: str, signature: StepSignature, filler: Rows,
                 check: Check | None, expected: Forecast, heap: Tensor | None,
                 later: Later | None = None) -> None:
        self.backend, self.signature, self.filler = backend, signature, filler
        self._step, self._check, self._later = step, check, later
        self._heap = heap  # while it is alive, the step's working memory stays with the process
        self._guarded = guarded(self._run, expected)

    def __call__(self, *inputs: Tensor) -> Sequence[Any]:
        """Returns the outputs. Raises MemoryLimitError if memory runs out."""
        return self._guarded(*inputs)

    def compile(self) -> str:
        """Compiles now, if it was not done; returns what runs the step from then on."""
        if self._later is not None:
            later, self._later = self._later, None
            self._step, self.backend = later.settled()
            self._check = None if self.backend == "eager" else later.check
        return self.backend

    def _run(self, *inputs: Tensor) -> Sequence[Any]:
        mask = inputs[-1]
        if self._later is not None and self._check is None:
            if self._later.due():
                self.compile()
            else:
                return self._later.timed(self._step, inputs)
        if self._check is None or not bool(mask.any()):
            return self._step(*inputs)
        return self._first_batch(self._check, inputs)

    def _first_batch(self, check: Check, inputs: Sequence[Tensor]) -> Sequence[Any]:
        """The outputs of the first batch with a row that counts, run by the eager graph as well."""
        text, outputs = check(self._step, inputs, "the first batch")
        self._check = None
        if text:
            backend, self.backend = self.backend, "eager"
            self._step = check.eager
            message = f"the step by {backend} is not the eager one, it runs eagerly from here on"
            warnings.warn(BackendWarning(f"{message}: {text}"), stacklevel=9)
        return outputs


def compile_checked(graph: StepGraph, signature: StepSignature, model: nn.Module, batch: Rows,
                    plan: Plan, backend: str) -> CompiledStep:
    """Returns the CompiledStep of `graph`. `batch`: rows that were shown, which legal rows are made
    of; none of them is needed.

    Raises ConfigError for an unknown backend, MemoryLimitError if memory runs out.
    """
    filler = batches.filler(batch, signature.spec)
    expected = forecast(plan, lambda: graph_peak(graph))
    heap = hold_heap(own_bytes(graph)) if signature.spec[0][2].type == "cpu" else None
    check = Check(graph, signature.names, len(BY_ROW))
    shown = batch if len(batch[0]) else filler

    # Rows are kept for later trials, and not the user's own batch.
    kept = tuple(x[:KEPT].detach().clone() for x in shown) if backend == "auto" else shown

    def compiled(name: str = backend) -> tuple[Step, str]:
        return _compared(check, signature, model, kept, filler, name)

    later = None
    # On a GPU a second process would take memory that the step was promised.
    if backend == "auto" and not batch[0].is_cuda:
        later = Later(check, example_inputs(signature, model, filler), signature.stays, compiled)
    step, name = guarded(compiled, expected)("eager" if later else backend)
    return CompiledStep(step, name, signature, filler, None if name == "eager" else check, expected,
                        heap, later)


def _compared(check: Check, signature: StepSignature, model: nn.Module, shown: Rows, filler: Rows,
              backend: str) -> tuple[Step, str]:
    """The step and what runs it, equal to the eager graph on rows that stand in for data."""
    def assemble(rows: Rows, mask: Tensor) -> list[Tensor]:
        return signature.of_model(model, rows, mask)

    on = [] if backend == "eager" else tries(check, shown, signature.rows, assemble)
    inputs = on[0][1] if on else example_inputs(signature, model, filler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", BackendWarning)
        # Batch, clip inputs and mask come anew with every step; the rest stays where it is.
        return compile_step(check.graph, inputs, backend, signature.stays, check, on)


def example_inputs(signature: StepSignature, model: nn.Module, filler: Rows) -> list[Tensor]:
    """Returns inputs of the step graph: the model's own tensors, copies of one row, a full mask."""
    rows = tuple(x[:1].expand(signature.rows, *x.shape[1:]).contiguous() for x in filler)
    mask = torch.ones(signature.rows, dtype=torch.bool, device=rows[0].device)
    return signature.of_model(model, rows, mask)


def graph_peak(graph: fx.GraphModule) -> float:
    """Returns bytes of a graph at its worst node, in the order it runs: inputs and all it makes."""
    return peak(listing(graph.graph)[0]).bytes


def own_bytes(graph: fx.GraphModule) -> float:
    """Returns bytes of all that a graph makes, at its worst node."""
    program = listing(graph.graph)[0]
    return peak(program).bytes - program.inputs
