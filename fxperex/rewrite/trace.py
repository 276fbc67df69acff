"""A function on fake tensors -> its graph: for the step, the planner's frame and trials."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fxperex.rewrite.record import record

# vmap says so if torch loops over examples inside; the plan knows what the strategy costs.
EXPECTED = ("There is a performance drop", "TF32 acceleration on top of oneDNN")


def trace(function: Callable[..., Any], inputs: Sequence[Tensor], fakes: FakeTensorMode, *,
          users_code: bool = False) -> fx.GraphModule:
    """Returns the graph of `function(*inputs)`, with fake values in `meta["val"]`. Nothing runs.

    users_code: `function` calls code of the user's (a clipping rule), whose warnings are shown.
    """
    with warnings.catch_warnings(), fakes:
        for message in EXPECTED if users_code else ("",):
            warnings.filterwarnings("ignore", message=message)
        # Fused CPU recurrent layers have no traceable backward; without mkldnn they come apart into
        # cells. Setting it may warn, so the filters come first.
        with torch.backends.mkldnn.flags(enabled=False):
            recorded = record(function, inputs)
            if recorded is not None:
                return recorded
            return make_fx(function, tracing_mode="real", _allow_non_fake_inputs=True)(*inputs)
