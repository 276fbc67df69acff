"""A step that fails on a batch, said in terms of the model: which operation, which line of the
user's, what to look at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.capture.source_lines import source_line
from fxperex.errors import DataError


class _Stops(fx.Interpreter):
    """Runs a graph and remembers the node it is at."""

    at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        return super().run_node(n)


def blamed(error: Exception, program: Callable[[], fx.GraphModule] | None, inputs: Sequence[Tensor],
           batch: Sequence[Tensor]) -> DataError:
    """Returns what to raise for `error` of a step: the operation of the captured `program()` that
    fails on its `inputs`.

    The message has no place without a program, where that does not fail, and on a GPU: after a
    failed assertion nothing runs there any more.
    """
    place = ""
    if program is not None and not any(x.is_cuda for x in inputs):
        node = _failing(program, inputs)
        place = f" in {node.target} at {source_line(node)}" if node is not None else ""
    rows = ", ".join(f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in batch)
    cause = str(error).strip().splitlines() or [""]
    return DataError(f"the step failed on a batch of {rows}{place}: {type(error).__name__}: "
                     f"{cause[0].rstrip('.')}. Look for labels or ids out of range, and for a "
                     "batch of another dtype than the model's. Nothing was written")


def _failing(program: Callable[[], fx.GraphModule], inputs: Sequence[Tensor]) -> fx.Node | None:
    run = None
    with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
        run = _Stops(program())
        run.run(*inputs)
        return None
    return run.at if run is not None else None
