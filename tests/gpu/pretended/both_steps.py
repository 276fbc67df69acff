"""The private step and the ordinary one of the same captured model, as graphs for a GPU that is not
there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from absent_gpu import CUDA
from small_nets import case
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fxperex.analysis import Analysis
from fxperex.capture.program import Capture
from fxperex.clipping import as_rule
from fxperex.graph.step_graph import copied
from fxperex.rewrite import evaluate
from fxperex.rewrite.passes import inline_custom_ops
from fxperex.rewrite.rewriter import rewrite
from fxperex.transform import outline

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def both(name: str, dtype: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Returns (private step, ordinary step) of one of the nets; `dtype`: "float32", "tf32", or
    "bfloat16", which weights and inputs are in then.

    They are planned and rewritten on the meta device: torch's autograd cannot run on a GPU that is
    not there. What Inductor is given is what `fxperex.compiler` gives it.
    """
    model, batch = case(name)
    if dtype == "bfloat16":
        model, batch = (
            model.bfloat16(),
            tuple(x.bfloat16() if x.is_floating_point() else x for x in batch),
        )
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    planned = outline(model, batch, nn.CrossEntropyLoss(), device=torch.device("cuda"))
    with _attention_of_a_gpu():
        private = rewrite(planned.capture, planned.analysis, planned.plan, as_rule(1.0))
    return inline_custom_ops(copied(private)), ordinary(planned.capture, planned.analysis)


def ordinary(capture: Capture, analysis: Analysis) -> fx.GraphModule:
    """Returns forward and backward to every parameter, no privacy: what `torch.compile` would be
    given."""
    program = capture.main
    trainable = {p for s in analysis.sites for p in s.params}

    def step(*args: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(kind == "parameter" and key in trainable)
                      for (kind, key), x in zip(capture.inputs.values(), args, strict=True)]
            loss = _Forward(program.graph).run(*leaves)[-1]
            grads = torch.autograd.grad(
                loss.mean(), [x for x in leaves if x.requires_grad], allow_unused=True
            )
        return (loss.detach(), *(g for g in grads if g is not None))

    values = [n.meta["val"] for n in program.nodes if n.op == "placeholder"]
    with capture.fakes:
        return make_fx(step, tracing_mode="real", _allow_non_fake_inputs=True)(*values)


class _Forward(fx.Interpreter):
    def run_node(self, node: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.op == "call_function" and node.target is ATTENTION:
            return attention(*args, **kwargs)
        return super().run_node(node)


@contextlib.contextmanager
def _attention_of_a_gpu() -> Iterator[None]:
    called = evaluate._called

    def on_a_gpu(node: fx.Node, *args: Any, **kwargs: Any) -> Any:
        return (
            attention(*args, **kwargs)
            if node.target is ATTENTION
            else called(node, *args, **kwargs)
        )

    with mock.patch.object(evaluate, "_called", on_a_gpu):
        yield


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0,
              is_causal: bool = False, *, scale: float | None = None, **_: Any) -> Tensor:
    """Returns attention as a GPU forms it; on the meta device torch takes the plain one, with its T
    x T matrices."""
    if mask is None and q.dtype in (torch.bfloat16, torch.float16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention.default
        return flash(q, k, v, dropout, is_causal, False, scale=scale)[0]
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention.default
    return efficient(q, k, v, mask, True, dropout, is_causal, scale=scale)[0]


def on_the_gpu(graph: fx.GraphModule) -> fx.GraphModule:
    """Makes every `device=meta` of `graph` the GPU, in place; returns it."""
    def moved(value: Any) -> Any:
        return CUDA if isinstance(value, torch.device) and value.type == "meta" else value

    for node in graph.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    graph.recompile()
    return graph
