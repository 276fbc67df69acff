"""model + loss + batch -> Capture: the functional ATen graph, at two batch sizes.

`torch.export` with a symbolic batch dimension is tried first. Code that specialises the batch size
(`x.view(len(x), -1)`) is exported at two concrete sizes instead, and both must give the same
program. Either way the capture holds two copies of one graph, at `rows` and at `rows + 1` examples:
a size that differs between them is the batch's, which is how later stages tell a batch-sized number
from a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxperex.capture.causes import data_dependent, explain, no_scripts
from fxperex.capture.cuda_autocast import Elsewhere
from fxperex.capture.export import export, inputs_of, specialise, user_name
from fxperex.capture.outside_tensors import NothingOutside
from fxperex.capture.refusals import (
    no_backward_hooks,
    no_custom_backward,
    nothing_unseen,
    same_constants,
)
from fxperex.capture.source_lines import Lines, source_line
from fxperex.errors import CaptureError, FxperexError
from fxperex.graph.strides import distinct

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
        """Returns the same program at another number of examples; CaptureError if it becomes
        another.
        """
        for ready in (self.main, self.twin):
            if rows == ready.rows:
                return ready
        program = self.make(rows)
        _same(self.main, program)
        return program


class _Whole(nn.Module):
    """The user's model beside its loss, as one module for export. The model itself is not
    changed.
    """

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self.run = forward

    def forward(self, *batch: Tensor) -> Tensor:
        with nothing_unseen(self.model, self.run), Lines(_Whole.forward.__code__), NothingOutside():
            loss = self.run(self.model, *batch)
            if not any(isinstance(x, Tensor) for x in pytree.tree_leaves(loss)):
                raise CaptureError("forward and loss must return one tensor, the loss; got "
                                   f"{type(loss).__name__}. Do not read it out by .item() or "
                                   "float()")
            return no_custom_backward(loss)


def _for_all_sizes(wrapped: nn.Module, batch: tuple[Tensor, ...],
                   elsewhere: Elsewhere | None) -> Any:
    """Returns one export for any number of examples, or None if the code fixes the number."""
    try:
        exported = export(wrapped, batch, elsewhere, symbolic=True)
    except FxperexError:  # from the user's forward, if it is one of this library's
        raise
    except Exception as error:  # export raises many unrelated classes
        if data_dependent(error):
            raise explain(error) from error
        return None
    # Taking operations apart may fix the size, without a word; each is then exported alone.
    return exported if exported.range_constraints else None


def capture(model: nn.Module, forward: Forward, batch: tuple[Tensor, ...], rows: int,
            elsewhere: Elsewhere | None = None) -> Capture:
    """Returns the Capture of `forward(model, *batch)`, exported `elsewhere`.

    Raises CaptureError or CoverageError with the user's line.
    """
    no_backward_hooks(model)
    no_scripts(model)
    size = max(rows, 2)  # one example has no visible batch axis
    wrapped = _Whole(model if elsewhere is None else elsewhere.model(model), forward)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    exported = _for_all_sizes(wrapped, _resize(batch, distinct(model, batch)), elsewhere)
    fixed: dict[int, Any] = {}  # exports at one size

    def make(count: int) -> Program:
        # Only a number of examples that it was not shown can be the cause by itself.
        sized = "" if count == len(batch[0]) else (
            f" with {count} examples, though the batch has {len(batch[0])}; does it hard-code its "
            "batch size? Take it from the input: x.view(len(x), -1), x.shape[0]")
        try:
            if exported is None and count not in fixed:
                fixed[count] = export(wrapped, _resize(batch, count), elsewhere, symbolic=False)
            source = fixed[count] if exported is None else exported
            graph = specialise(source, model, _resize(batch, count), fakes, count)
            inputs, constants = inputs_of(source)
            named = {name: constants[key] for name, (kind, key) in inputs.items()
                     if kind == "constant"}
            return Program(graph, count, named)
        except FxperexError:
            raise
        except Exception as error:  # export raises many unrelated classes
            raise explain(error, sized) from error

    main, twin = make(size), make(size + 1)
    _same(main, twin)
    source = fixed[size] if exported is None else exported
    inputs, constants = inputs_of(source)
    first_names = _first_names(model)
    inputs = {k: (kind, first_names.get(key, key)) if kind == "parameter" else (kind, key)
              for k, (kind, key) in inputs.items()}
    mutated = [user_name(name) for name in source.graph_signature.buffers_to_mutate.values()]
    return Capture(main, twin, inputs, constants, mutated, exported is not None, make, fakes)


def _resize(batch: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    # Values are used for shape and dtype only; an empty batch has no row to repeat.
    def one(x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_zeros((rows, *x.shape[1:]))
        return x[torch.arange(rows, device=x.device) % len(x)]

    return tuple(one(x.detach()) for x in batch)


def _same(one: Program, two: Program) -> None:
    pairs = zip(one.nodes, two.nodes, strict=False)
    differs = next(((a, b)
                    for a, b in pairs
                    if a.op != b.op or (a.target != b.target and a.op != "placeholder")), None)
    if differs or len(one.nodes) != len(two.nodes):
        place = "the end of the program"
        if differs:
            path = module_path(differs[0])
            place = source_line(differs[0]) + (f" (module {path})" if path else "")
        raise CaptureError(f"the model runs another program with {one.rows} examples than with "
                           f"{two.rows}: they part at {place}. A private step needs one program "
                           "for every batch size. A loop over the batch does this, and a "
                           "recurrent layer that takes the batch for its time steps (see "
                           "batch_first).")
    same_constants(one, two)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Returns {every name of a parameter: its first}: export may keep any name of a tied one."""
    first_names: dict[int, str] = {}
    return {
        name: first_names.setdefault(id(p), name)
        for name, p in model.named_parameters(remove_duplicate=False)
    }


def module_path(node: fx.Node) -> str:
    """Returns the qualified name of the user's module that made `node`, '' for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return user_name(paths[-1]) if paths and paths[-1] != "model" else ""
