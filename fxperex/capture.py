"""model + loss + batch -> Capture: the functional ATen graph, at two batch sizes.

`torch.export` with a symbolic batch dimension is tried first. Code that specialises the batch size
(`x.view(len(x), -1)`) is exported at two concrete sizes instead, and both must give the same program.
Either way the capture holds two copies of one graph, at `rows` and at `rows + 1` examples: a size that
differs between them is the batch's, which is how later stages tell a batch-sized number from a constant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxperex.bags import take_bags_apart
from fxperex.causes import data_dependent, explain, no_ragged, no_scripts
from fxperex.elsewhere import Elsewhere
from fxperex.errors import CaptureError, FxperexError
from fxperex.lines import Lines, kept, source_line
from fxperex.masks import unseen
from fxperex.outside import NothingOutside
from fxperex.quiet import quiet
from fxperex.recurrent import DECOMPOSITIONS
from fxperex.refusals import (
    no_backward_hooks,
    no_custom_backward,
    no_writes,
    nothing_unseen,
    same_constants,
)
from fxperex.strides import distinct, forget_strides

Forward = Callable[..., Tensor]


@dataclass
class Program:
    """One functional graph at a fixed number of examples; `meta["val"]` holds fake values.

    `constants`: the tensors that its placeholders of that kind stand for, by name of the
    placeholder.
    """

    graph: fx.GraphModule
    rows: int
    constants: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.graph.graph.nodes)


@dataclass
class Capture:
    """What `capture` returns: the program at `rows` examples and its twin at `rows + 1`.

    `inputs`: placeholder name -> ("parameter" | "buffer" | "constant", name) or ("batch", index).
    `mutated`: buffer names whose new values are the first outputs of the graph.
    """

    main: Program
    twin: Program
    inputs: dict[str, tuple[str, Any]]
    constants: dict[str, Tensor]
    mutated: list[str]
    symbolic: bool
    make: Callable[[int], Program] = field(repr=False)
    fakes: FakeTensorMode = field(repr=False)

    def at(self, rows: int) -> Program:
        """Returns the same program at another number of examples; CaptureError if it becomes another."""
        for known in (self.main, self.twin):
            if rows == known.rows:
                return known
        program = self.make(rows)
        _same(self.main, program)
        return program


class _Whole(nn.Module):
    """The user's model beside its loss, as one module for export. The model itself is not changed."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self.run = forward

    def forward(self, *batch: Tensor) -> Tensor:
        with nothing_unseen(self.model, self.run), Lines(_Whole.forward.__code__), NothingOutside():
            loss = self.run(self.model, *batch)
            if not any(isinstance(x, Tensor) for x in pytree.tree_leaves(loss)):
                raise CaptureError("forward and loss must return one tensor, the loss; got "
                                   f"{type(loss).__name__}. Do not read it out by .item() or float()")
            return no_custom_backward(loss)


def capture(model: nn.Module, forward: Forward, batch: tuple[Tensor, ...], rows: int,
            elsewhere: Elsewhere | None = None) -> Capture:
    """Returns the Capture of `forward(model, *batch)`, exported `elsewhere`.

    Raises CaptureError or CoverageError with the user's line.
    """
    no_backward_hooks(model)
    no_scripts(model)
    size = max(rows, 2)  # one example has no visible batch axis
    whole = _Whole(model if elsewhere is None else elsewhere.model(model), forward)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        exported = _export(whole, _resize(batch, distinct(model, batch)), elsewhere, symbolic=True)
        # Taking operations apart may fix the size, without a word; then each size is exported by itself.
        exported = exported if exported.range_constraints else None
    except FxperexError:  # from the user's forward, where it is one of this library's
        raise
    except Exception as error:  # export raises many unrelated classes
        if data_dependent(error):
            raise explain(error) from error
        exported = None
    fixed: dict[int, Any] = {}  # exports at one size

    def make(count: int) -> Program:
        # Only a number of examples that it was not shown can be the cause by itself.
        sized = "" if count == len(batch[0]) else (
            f" with {count} examples, though the batch has {len(batch[0])}; does it hard-code its batch size? Take "
            "it from the input: x.view(len(x), -1), x.shape[0]")
        try:
            if exported is None and count not in fixed:
                fixed[count] = _export(whole, _resize(batch, count), elsewhere, symbolic=False)
            source = fixed[count] if exported is None else exported
            graph = _specialise(source, model, _resize(batch, count), fakes, count)
            inputs, constants = _inputs(source)
            named = {name: constants[key] for name, (kind, key) in inputs.items() if kind == "constant"}
            return Program(graph, count, named)
        except FxperexError:
            raise
        except Exception as error:  # export raises many unrelated classes
            raise explain(error, sized) from error

    main, twin = make(size), make(size + 1)
    _same(main, twin)
    source = fixed[size] if exported is None else exported
    inputs, constants = _inputs(source)
    first = _first_names(model)
    inputs = {k: (kind, first.get(key, key)) if kind == "parameter" else (kind, key) for k, (kind, key) in inputs.items()}
    mutated = [_strip(name) for name in source.graph_signature.buffers_to_mutate.values()]
    return Capture(main, twin, inputs, constants, mutated, exported is not None, make, fakes)


def _resize(batch: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    # Values are used for shape and dtype only; an empty batch has no row to repeat.
    def one(x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_zeros((rows, *x.shape[1:]))
        return x[torch.arange(rows, device=x.device) % len(x)]

    return tuple(one(x.detach()) for x in batch)


def _export(whole: nn.Module, batch: tuple[Tensor, ...], elsewhere: Elsewhere | None, *, symbolic: bool) -> Any:
    rows = torch.export.Dim("B", min=2)
    shapes = (tuple({0: rows} for _ in batch),) if symbolic else None
    batch = batch if elsewhere is None else tuple(map(elsewhere.tensor, batch))
    with quiet(), unseen(), contextlib.nullcontext() if elsewhere is None else elsewhere.casting():
        with kept():
            exported = torch.export.export(whole, batch, dynamic_shapes=shapes, strict=False)
        _detach_no_grad(exported.graph_module)
        no_ragged(exported.graph_module)
        take_bags_apart(exported.graph_module)
        exported = exported.run_decompositions(DECOMPOSITIONS | {torch.ops.aten.copy.default: _written})
        no_writes(exported)
        forget_strides(exported.graph_module)
        return exported if elsewhere is None else elsewhere.back(exported)


def _written(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What a write of `source` leaves in `target`: `aten.copy`, which has no derivative, says no more.

    Contiguous, as what was written into is: later lines may view it.
    """
    made = source.to(target.device, target.dtype).expand_as(target)
    return made.clone(memory_format=torch.contiguous_format)


def _detach_no_grad(graph: fx.GraphModule) -> None:
    """`with torch.no_grad()` region -> the same region with detached outputs.

    Decomposition inlines the region and forgets that no gradient flows through it: without this the
    captured program would have another gradient than the user's.
    """
    for node in list(graph.graph.nodes):
        if "wrap_with_set_grad_enabled" not in str(node.target):
            continue
        body = getattr(graph, node.args[1].target)
        if node.args[0] or any("wrap_with_set_grad_enabled" in str(n.target) for n in body.graph.nodes):
            raise CaptureError("enable_grad inside no_grad is not supported: "
                               f"{node.meta.get('stack_trace', '')}. Call .detach() where it is meant instead.")
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


def _specialise(source: Any, model: nn.Module, batch: tuple[Tensor, ...],
                fakes: FakeTensorMode, rows: int) -> fx.GraphModule:
    """Graph with symbolic sizes -> the same graph with every size a number, fake values in `meta`."""
    inputs, constants = _inputs(source)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    args = []
    for kind, key in inputs.values():
        real = batch[key] if kind == "batch" else constants[key] if kind == "constant" else tensors[key]
        args.append(fakes.from_tensor(real.detach(), static_shapes=True))
    shapes = _Shapes(source.graph_module)
    with fakes, torch.no_grad(), quiet():
        shapes.run(*args)
    return _copy_with_numbers(source.graph_module, shapes.values)


def _copy_with_numbers(source: fx.GraphModule, values: dict[fx.Node, Any]) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {}
    for node in source.graph.nodes:
        value = values[node]
        if node.op == "call_function" and isinstance(value, int | float | torch.SymInt):
            made[node] = int(value) if isinstance(value, torch.SymInt) else value
        elif node.op == "call_function" and "_assert" in str(node.target):
            continue
        else:
            made[node] = graph.create_node(node.op, node.target, fx.map_arg(node.args, made.__getitem__),
                                           fx.map_arg(node.kwargs, made.__getitem__), node.name)
            made[node].meta = {**node.meta, "val": value}
    graph.eliminate_dead_code()
    return fx.GraphModule(source, graph)


def _same(one: Program, two: Program) -> None:
    pairs = zip(one.nodes, two.nodes, strict=False)
    differs = next(((a, b) for a, b in pairs if a.op != b.op or (a.target != b.target and a.op != "placeholder")), None)
    if differs or len(one.nodes) != len(two.nodes):
        at = "the end of the program"
        if differs:
            path = module_path(differs[0])
            at = source_line(differs[0]) + (f" (module {path})" if path else "")
        raise CaptureError(f"the model runs another program with {one.rows} examples than with {two.rows}: they "
                           f"part at {at}. A private step needs one program for every batch size. A loop over the batch "
                           "does this, and a recurrent layer that takes the batch for its time steps (see batch_first).")
    same_constants(one, two)


def _inputs(source: Any) -> tuple[dict[str, tuple[str, Any]], dict[str, Tensor]]:
    from torch.export.graph_signature import InputKind

    names = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer", InputKind.CONSTANT_TENSOR: "constant"}
    inputs: dict[str, tuple[str, Any]] = {}
    constants: dict[str, Tensor] = {}
    for index, item in enumerate(s for s in source.graph_signature.input_specs if s.kind == InputKind.USER_INPUT):
        inputs[item.arg.name] = ("batch", index)
    for item in source.graph_signature.input_specs:
        if item.kind in names:
            kind = names[item.kind]
            inputs[item.arg.name] = (kind, item.target if kind == "constant" else _strip(item.target))
            if kind == "constant":
                constants[item.target] = source.constants[item.target]
        elif item.kind != InputKind.USER_INPUT:
            raise CaptureError(f"the model needs an input of kind {item.kind}, which is not supported: {item.arg}")
    order = [node.name for node in source.graph_module.graph.nodes if node.op == "placeholder"]
    return {name: inputs[name] for name in order}, constants


def _first_names(model: nn.Module) -> dict[str, str]:
    """Returns {every name of a parameter: its first}: export may keep any name of a tied one."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}


def _strip(name: str) -> str:
    return name.removeprefix("model.")


def module_path(node: fx.Node) -> str:
    """Returns the qualified name of the user's module that made `node`, '' for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return _strip(paths[-1]) if paths and paths[-1] != "model" else ""
