"""Why a program could not be captured, and what to write instead: one row for each cause that
torch's own words hide.

Export fails in many unrelated classes, about its own internals. A row is asked in order and answers
for what it knows; an error that no row knows is the user's own or torch's, and is passed on with
its class, its words and the user's line.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxperex.capture.source_lines import is_users, source_line
from fxperex.errors import CaptureError

RAGGED = ("how many entries it gives depends on the data, and a private step needs shapes that do "
          "not. Compute all entries and weigh them: with one loss per entry (reduction='none'), "
          "(loss * mask).sum(1) / mask.sum(1)")
BRANCH = ("control flow that depends on data cannot be captured. To choose between two results, "
          "compute both and take torch.where(condition, a, b); a check of values (isnan, assert) "
          "is to be taken out, for rows whose gradient is not finite are dropped and counted")


@dataclass(frozen=True)
class Failure:
    """An error of capture as the rows see it: its words, the files of its traceback, and the user's
    line.
    """

    error: BaseException
    text: str
    files: str
    code: str

    def says(self, *words: str) -> bool:
        return any(word in self.text for word in words)


@dataclass(frozen=True)
class Cause:
    """`explains(failure)`; `what` the program does and what to do instead."""

    explains: Callable[[Failure], bool]
    what: str


CAUSES: tuple[Cause, ...] = (
    Cause(
        lambda f: _reads_data(f) and "/distributions/" in f.files,
        "torch.distributions checks its arguments by control flow on data; make the "
        "distribution with validate_args=False"),
    Cause(
        lambda f: _reads_data(f) and "gaussian_nll_loss" in f.code,
        "gaussian_nll_loss checks its variance by control flow on data; write it out, as "
        "0.5 * (var.log() + (mean - target) ** 2 / var)"),
    Cause(lambda f: _reads_data(f) and f.says("specialized integer"), RAGGED),
    Cause(lambda f: _reads_data(f), BRANCH),
    Cause(
        lambda f: "nn/utils/rnn.py" in f.files or
        ("nn/modules/rnn.py" in f.files and f.says("FakeTensor")),
        "packed sequences hold several examples in one row, and their lengths are data. Run the "
        "layer on the padded batch; o[torch.arange(len(o)), n - 1] is the output at the last "
        "valid step of lengths n"),
    Cause(
        lambda f: f.says("_nested_") or "torch/nested/" in f.files,
        "nested tensors have no fixed place for each example. Pad the examples to one length, "
        "and leave padding out of the loss by a mask"),
    Cause(
        lambda f: f.says("fake tensor in the exported program "
                         "constant", "has no attribute 'constant'", "functorch tensor"),
        "a derivative inside the forward or loss (torch.autograd.grad, torch.func.grad) cannot "
        "be captured, nor can a tensor's .data. torch.func.jvp can, which gives the derivative "
        "in one direction; for .data write .detach()"),
    Cause(
        lambda f: f.says("FlexAttention does not support backward on CPU"),
        "flex_attention has no backward on a CPU. Use scaled_dot_product_attention with an "
        "attn_mask, or a GPU"),
    Cause(
        lambda f: f.says("_ctc_loss"),
        "the CTC loss of torch returns a tensor whose size depends on the data. Write its "
        "recursion over time with torch operations (torch.logaddexp), for targets padded to one "
        "length"),
    Cause(
        lambda f: f.says(".numpy() is not supported"),
        "numpy inside the forward cannot be captured. Use torch operations, or hand the array "
        "in as a tensor of the batch"),
    Cause(
        lambda f: f.says("_local_scalar_dense"),
        "a value read out of a tensor (.item(), .tolist(), float()) cannot be captured: the "
        "step would depend on the batch through Python. Keep it a tensor: y.float().mean() for "
        "y.float().mean().item()"),
)


def _reads_data(failure: Failure) -> bool:
    return data_dependent(failure.error)


def data_dependent(error: BaseException) -> bool:
    """True for an error of export about control flow that depends on values of tensors."""
    names = {
        "GuardOnDataDependentSymNode", "DataDependentOutputException",
        "PendingUnbackedSymbolNotFound"
    }
    return type(error).__name__ in names - {"DataDependentOutputException"
                                            } or "data-dependent" in str(error)


def explain(error: Exception, sized: str = "") -> CaptureError:
    """Returns the CaptureError for `error`: its cause and the way out, the user's line, torch's
    class and words.

    sized: what to say of an error that no row knows, if a number of examples was the cause.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if is_users(f.filename)]
    place = f' at {own[-1].filename}:{own[-1].lineno} "{own[-1].line}"' if own else ""
    failure = Failure(error, str(error), "\n".join(f.filename for f in frames),
                      "\n".join(f"{f.name} {f.line}" for f in frames))
    words = failure.text.strip().splitlines()
    torchs = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
    cause = next((c.what for c in CAUSES if c.explains(failure)), "")
    if cause:
        return CaptureError(f"the model could not be captured{place}: {cause}. ({torchs})")
    return CaptureError(f"the model could not be captured{sized}{place}: {torchs}")


def no_ragged(graph: fx.GraphModule) -> None:
    """Raises CaptureError for an operation of an exported `graph` whose number of results depends
    on the data.
    """
    # Imports sympy, which takes longer than the rest of this library.
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and any(
                free_unbacked_symbols(size) for size in value.shape):
            raise CaptureError(f"the model could not be captured: of {node.target} at "
                               f"{source_line(node)}, {RAGGED}")


def no_scripts(model: torch.nn.Module) -> None:
    """Raises CaptureError for a module compiled by torch.jit."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(f"{name or 'the model'} is a torch.jit.ScriptModule, whose Python "
                               "is gone; hand over the module that it was scripted or traced from")
