"""PyTorch's own table of module inputs, `module_db`, as the package ships it.

Every input with a module that has parameters is offered. One without a batch axis is offered as
three of its like, with
the axis where its own reference puts it: a sequence module's is dimension 1 unless it is
`batch_first`, a first state's is 1, a padding mask's 0; a mask over positions is the same for all.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from case import Case
from shipped import module as module_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

SKIPPED = {"LinearCrossEntropyLoss"}  # 881 inputs of one loss
POSITIONS = {"mask", "attn_mask", "src_mask", "tgt_mask", "memory_mask"}
RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
CONVS = tuple(f"{lazy}Conv{turned}{d}d" for lazy in ("", "Lazy") for turned in ("", "Transpose")
              for d in (1, 2, 3))
KINDS = (*CONVS, *(f"{norm}Norm{d}d" for norm in ("Batch", "Instance") for d in (1, 2, 3)),
         "Bilinear", "Embedding", "GRU", "GRUCell", "GroupNorm", "LSTM", "LSTMCell", "LayerNorm",
         "Linear", "MultiheadAttention", "PReLU", "RMSNorm", "RNN", "RNNCell", "Transformer",
         "TransformerDecoderLayer", "TransformerEncoder", "TransformerEncoderLayer")


def _table() -> dict[str, Any]:
    infos = module_of("torch.testing._internal.common_modules").module_db
    return {
        info.module_cls.__name__: info
        for info in infos
        if info.module_cls.__name__ not in SKIPPED
    }


def others() -> list[str]:
    """Returns the names of the modules in the table that are not of KINDS: none has a parameter."""
    return [name for name in _table() if name not in KINDS]


def cases(kind: str) -> list[Case]:
    """Returns the cases of module `kind`: none where it has no parameters; batch normalisation in
    both modes.
    """
    with warnings.catch_warnings():  # modules that tell of their own defaults when they are made
        warnings.simplefilter("ignore")
        return _made(kind)


def _made(kind: str) -> list[Case]:
    info = _table()[kind]
    torch.manual_seed(0)
    made = []
    for given in info.module_inputs_func(info, device="cpu", dtype=torch.float64,
                                         requires_grad=False, training=True):
        args, options = given.constructor_input.args, given.constructor_input.kwargs
        module = info.module_cls(*args, **options).double()
        if nn.parameter.is_lazy(next(module.parameters(), None)):
            module(*given.forward_input.args, **given.forward_input.kwargs)
        if list(module.parameters()):
            made += [c for c in _cases(kind, module, given) if c is not None]
    return made


def _cases(kind: str, module: nn.Module, given: Any) -> list[Case | None]:
    if "BatchNorm" not in kind:
        return [_case(kind, module, given)]
    tracks = module.track_running_stats
    still = _case(kind, module.eval(), given, mixes=not tracks)
    return [
        still,
        _case(kind,
              type(module)(*given.constructor_input.args).double(), given, mixes=True)
    ]


def _case(kind: str, module: nn.Module, given: Any, mixes: bool = False) -> Case | None:
    args, options = given.forward_input.args, given.forward_input.kwargs
    leaves, spec = pytree.tree_flatten_with_path((args, options))
    alone, dims = _unbatched(given), [_place(module, path, leaf) for path, leaf in leaves]
    rows = [
        _rows(leaf, at, alone) for (_, leaf), at in zip(leaves, dims, strict=True) if at is not None
    ]
    if not rows or any(x is None for x in rows):
        return None

    def call(module: nn.Module, *batch: Tensor) -> Any:
        given = iter(batch)
        full = [
            leaf if at is None else next(given).movedim(0, at)
            for (_, leaf), at in zip(leaves, dims, strict=True)
        ]
        args, options = pytree.tree_unflatten(full, spec)
        return module(*args, **_per_head(options, len(batch[0])))

    return Case(kind, module, tuple(rows), call, _sequence(module), mixes=mixes, note=given.desc)


def _unbatched(given: Any) -> bool:
    reference = inspect.unwrap(given.reference_fn) if given.reference_fn else None
    name = getattr(getattr(reference, "func", reference), "__name__", "")
    return "no_batch_dim" in given.desc or name.startswith("no_batch_dim")


def _sequence(module: nn.Module) -> int:
    """The dimension of the batch in the module's main input and output."""
    flags = [m.batch_first for m in module.modules() if hasattr(m, "batch_first")]
    return 1 if flags and not flags[0] else 0


def _place(module: nn.Module, path: Any, leaf: Any) -> int | None:
    """The batch's dimension in one forward argument; None where it has none."""
    if not isinstance(leaf, Tensor):
        return None
    where = getattr(path[1], "key", None) if len(path) > 1 else None
    if where in POSITIONS:
        return None
    if "padding_mask" in str(where):
        return 0
    first = getattr(path[1], "idx", 0) == 0
    return 1 if isinstance(module, RECURRENT) and not first else _sequence(module)


def _rows(leaf: Tensor, at: int, alone: bool) -> Tensor | None:
    """The argument with the examples first; None for a scalar, which has no place for them."""
    if alone:
        others = [leaf, leaf.flip(-1), 0.5 * leaf] if leaf.is_floating_point() else [leaf] * 3
        return torch.stack(others)
    return leaf.movedim(at, 0).contiguous() if leaf.dim() else None


def _per_head(options: dict[str, Any], rows: int) -> dict[str, Any]:
    """An attention mask `[heads, T, S]` of one example, as many times as there are examples."""
    mask = options.get("attn_mask")
    return {**options, "attn_mask": mask.repeat(rows, 1, 1)
            } if isinstance(mask, Tensor) and mask.dim() == 3 else options
