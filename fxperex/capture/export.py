"""A model and its loss -> one ATen program: torch.export, silent, with its writes and packed
operations taken apart.

A program exported with a symbolic batch is specialised to one number of examples: every size
becomes a number, and every node gets its fake value in `meta["val"]`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxperex.capture.attention_masks import ignore_mask_values
from fxperex.capture.causes import no_ragged
from fxperex.capture.composites import taken_apart
from fxperex.capture.cuda_autocast import Elsewhere
from fxperex.capture.embedding_bags import take_bags_apart
from fxperex.capture.functionalise import functionalise
from fxperex.capture.quiet import quiet
from fxperex.capture.recurrent import DECOMPOSITIONS
from fxperex.capture.refusals import refuse_input_writes
from fxperex.capture.source_lines import preserve_source_lines
from fxperex.capture.writes import WRITES
from fxperex.errors import CaptureError
from fxperex.graph.step_graph import CapturedGraph
from fxperex.graph.strides import forget_strides


def export(whole: nn.Module, batch: tuple[Tensor, ...], elsewhere: Elsewhere | None, *,
           symbolic: bool) -> Any:
    """Returns the exported program of `whole(*batch)`; symbolic: for any number of examples.

    Raises CaptureError, MutationError, and whatever torch.export or the user's forward raises.
    """
    rows = torch.export.Dim("B", min=2)
    shapes = (tuple({0: rows} for _ in batch),) if symbolic else None
    batch = batch if elsewhere is None else tuple(map(elsewhere.tensor, batch))
    with quiet(), ignore_mask_values(), _default_device(batch, elsewhere):
        with _unchecked_distributions(), preserve_source_lines():
            exported = torch.export.export(whole, batch, dynamic_shapes=shapes, strict=False)
        _detach_no_grad(exported.graph_module)
        no_ragged(exported.graph_module)
        take_bags_apart(exported.graph_module)
        apart = DECOMPOSITIONS | WRITES | taken_apart(exported.graph_module)
        if not functionalise(exported.graph_module, apart):
            exported = exported.run_decompositions(apart)
        refuse_input_writes(exported)
        forget_strides(exported.graph_module)
        return exported if elsewhere is None else elsewhere.back(exported)


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Within it `torch.distributions` does not check its arguments by default.

    A check reads values, which a graph does not have. A row that it would have refused is not
    finite as a rule, and is dropped.
    """
    law = torch.distributions.Distribution
    before = law._validate_args
    law.set_default_validate_args(False)
    try:
        yield
    finally:
        law.set_default_validate_args(before)


def _default_device(batch: tuple[Tensor, ...],
                    elsewhere: Elsewhere | None) -> AbstractContextManager[Any]:
    """Within it a tensor made without a device is where the model is."""
    if elsewhere is not None:
        return elsewhere.casting()
    return batch[0].device if batch[0].is_meta else contextlib.nullcontext()


def _detach_no_grad(graph: fx.GraphModule) -> None:
    """`with torch.no_grad()` region -> the same region with detached outputs.

    Decomposition inlines the region and forgets that no gradient flows through it: without this the
    captured program would have another gradient than the user's.
    """
    for node in list(graph.graph.nodes):
        if "wrap_with_set_grad_enabled" not in str(node.target):
            continue
        body = getattr(graph, node.args[1].target)
        if node.args[0] or any("wrap_with_set_grad_enabled" in str(n.target)
                               for n in body.graph.nodes):
            raise CaptureError("enable_grad inside no_grad is not supported: "
                               f"{node.meta.get('stack_trace', '')}. Call .detach() where it is "
                               "meant instead.")
        for item in list(node.users):
            with graph.graph.inserting_after(item):
                cut = graph.graph.call_function(torch.ops.aten.detach.default, (item,))
            cut.meta.update(item.meta)
            item.replace_all_uses_with(cut, delete_user_cb=lambda user, cut=cut: user is not cut)
    graph.recompile()


class _Shapes(fx.Interpreter):
    """Runs a graph on fake tensors and keeps every node's value."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = value = super().run_node(n)
        return value


def specialise(source: Any, model: nn.Module, batch: tuple[Tensor, ...],
                fakes: FakeTensorMode, rows: int) -> fx.GraphModule:
    """Graph with symbolic sizes -> the same graph with every size a number, fake values in
    `meta`.
    """
    inputs, constants = inputs_of(source)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    args = []
    for kind, key in inputs.values():
        real = batch[
            key] if kind == "batch" else constants[key] if kind == "constant" else tensors[key]
        args.append(fakes.from_tensor(real.detach(), static_shapes=True))
    shapes = _Shapes(source.graph_module)
    with fakes, torch.no_grad(), quiet():
        shapes.run(*args)
    return _copy_with_numbers(source.graph_module, shapes.values)


def _copy_with_numbers(source: fx.GraphModule, values: dict[fx.Node, Any]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in source.graph.nodes:
        value = values[node]
        if node.op == "call_function" and isinstance(value, int | float | torch.SymInt):
            copies[node] = int(value) if isinstance(value, torch.SymInt) else value
        elif node.op == "call_function" and "_assert" in str(node.target):
            continue
        else:
            copies[node] = graph.create_node(node.op, node.target,
                                             fx.map_arg(node.args, copies.__getitem__),
                                             fx.map_arg(node.kwargs, copies.__getitem__), node.name)
            copies[node].meta = {**node.meta, "val": value}
    graph.eliminate_dead_code()
    return CapturedGraph(source, graph)


def inputs_of(source: Any) -> tuple[dict[str, tuple[str, Any]], dict[str, Tensor]]:
    """Returns ({placeholder: (kind, name or index in the batch)}, {name: constant}) of an exported
    program.
    """
    from torch.export.graph_signature import InputKind

    names = {
        InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer",
        InputKind.CONSTANT_TENSOR: "constant"
    }
    inputs: dict[str, tuple[str, Any]] = {}
    constants: dict[str, Tensor] = {}
    for index, item in enumerate(
            s for s in source.graph_signature.input_specs if s.kind == InputKind.USER_INPUT):
        inputs[item.arg.name] = ("batch", index)
    for item in source.graph_signature.input_specs:
        if item.kind in names:
            kind = names[item.kind]
            inputs[item.arg.name] = (kind,
                                     item.target if kind == "constant" else user_name(item.target))
            if kind == "constant":
                constants[item.target] = source.constants[item.target]
        elif item.kind != InputKind.USER_INPUT:
            raise CaptureError(f"the model needs an input of kind {item.kind}, which is not "
                               f"supported: {item.arg}")
    order = [node.name for node in source.graph_module.graph.nodes if node.op == "placeholder"]
    return {name: inputs[name] for name in order}, constants


def user_name(name: str) -> str:
    """Returns a parameter's or module's name in the user's model."""
    return name.removeprefix("model.")
