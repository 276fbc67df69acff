"""What a step takes and what it gives, as values: the same for a fresh step and a loaded one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxperex.analysis.sites import Analysis
from fxperex.capture.program import Capture
from fxperex.clipping import Clip
from fxperex.plan.plan import Plan
from fxperex.ranks.shards import local
from fxperex.rewrite.rewriter import parameter_order
from fxperex.runtime.batches import Rows, Spec

BY_ROW = ("the losses", "the norms", "the factors")  # outputs with one entry for each example


@dataclass(frozen=True)
class StepSignature:
    """The inputs and outputs of a step graph.

    inputs: placeholder -> ("parameter" | "buffer" | "constant", name) or ("batch", index), in
    order; after them come the inputs of `clip` and the mask `[rows]`.
    spec: shape of one row, dtype and device of each tensor of a batch; rows: rows of one step.
    trained: the parameters that get a sum; mutated: the buffers that get a new value. Outputs are
    those of BY_ROW, one sum for each of `trained`, one value for each of `mutated`.
    """

    inputs: Mapping[str, tuple[str, Any]]
    constants: Mapping[str, Tensor]
    spec: Spec
    rows: int
    trained: tuple[str, ...]
    mutated: tuple[str, ...]
    clip: Clip

    @classmethod
    def of(cls, batch: Rows, capture: Capture, analysis: Analysis, plan: Plan,
           clip: Clip) -> StepSignature:
        """Returns the signature of what `rewrite` makes of these for rows like those of `batch`."""
        spec = tuple((tuple(x.shape[1:]), x.dtype, x.device) for x in batch)
        return cls(capture.inputs, capture.constants, spec, plan.frame_rows,
                   tuple(parameter_order(capture, analysis)), tuple(capture.mutated), clip)

    @property
    def names(self) -> list[str]:
        """What a message calls each output."""
        return [
            *BY_ROW, *(f"the sum of {n!r}" for n in self.trained),
            *(f"the buffer {n!r}" for n in self.mutated)
        ]

    @property
    def parameters(self) -> list[int]:
        """Which inputs are parameters, trained or frozen, by number."""
        return [i for i, (kind, _) in enumerate(self.inputs.values()) if kind == "parameter"]

    @property
    def stays(self) -> list[bool]:
        """For each input, whether it stays where it is from step to step (parameters, buffers)."""
        anew = len(self.clip.inputs()) + 1  # and the mask
        return [kind != "batch" for kind, _ in self.inputs.values()] + [False] * anew

    def assemble(self, named: Mapping[str, Tensor], rows: Rows, *mask: Tensor) -> list[Tensor]:
        """Returns the inputs in order, of parameters and buffers by name, rows and mask."""
        values = []
        for kind, key in self.inputs.values():
            holder: Any = {"batch": rows, "constant": self.constants}.get(kind, named)
            values.append(local(holder[key]))
        return [*values, *(x.to(rows[0].device) for x in self.clip.inputs()), *mask]

    def of_model(self, model: nn.Module, rows: Rows, *mask: Tensor) -> list[Tensor]:
        """Returns the inputs in order, with parameters and buffers of `model` as it is."""
        named = dict(model.named_parameters(remove_duplicate=False))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        return self.assemble(named | buffers, rows, *mask)

    def split(self, outputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Returns (values by row, sums, buffers) of a step's outputs."""
        begin, end = len(BY_ROW), len(BY_ROW) + len(self.trained)
        return outputs[:begin], outputs[begin:end], outputs[end:]
