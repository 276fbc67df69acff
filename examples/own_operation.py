"""Give an operation of your own a batch rule, so that the proof can follow examples through it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxperex
from fxperex.extend import Context, State, batch_rule
from fxperex.testing import error, loop


@torch.library.custom_op("example::squash", mutates_args=())
def squash(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@squash.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return g / (1 + x.abs()) ** 2


squash.register_autograd(
    backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return squash(x)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), Squash(), nn.Linear(16, 3))
batch, loss = (torch.randn(12, 8), torch.randint(0, 3, (12,))), nn.CrossEntropyLoss()
try:
    fxperex.transform(model, batch, loss, backend="eager")
except fxperex.BatchMixingError as refusal:
    print("without a rule:", refusal)


@batch_rule("example.squash", reads="x")
def keeps_its_place(context: Context) -> State:
    """Element by element: examples stay where they are. You vouch for this, so be sure."""
    return context.state("x")


private = fxperex.transform(model, batch, loss, backend="eager")
truth = loop(model, lambda m, x, y: loss(m(x), y), batch)
worst = max(error(g, truth[name]) for name, g in private.gradients(*batch).items())
print(f"with the rule: error {worst:.1e} against the float64 loop")
assert worst < 1e-5
