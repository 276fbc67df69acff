"""What one row may be, and how rows become a batch: tensors, numpy arrays and numbers, by place or
by name.

Every row is made by itself and rows are then laid one after another. So no row can change what
another becomes, whatever a `collate_fn` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from fxperex.capture.structure import as_arguments, leaves, mapped, plain
from fxperex.errors import ShapeError

ROWS = "a tuple of tensors or a mapping of tensors, numpy arrays and numbers"


def columns(dataset: Any) -> Any:
    """Returns a data set that is held whole: tensors and arrays with the examples first.

    Raises ShapeError.
    """
    held = leaves(dataset)
    if not held or not all(is_array(x) and len(x.shape) for x in held):
        raise ShapeError("dataset must be a tuple of tensors with the examples first, a mapping of "
                         "them (numpy arrays may stand for tensors), or a map-style Dataset; got "
                         f"{type(dataset).__name__} of {[type(x).__name__ for x in held]}")
    if len({len(x) for x in held}) != 1:
        raise ShapeError("dataset tensors have different numbers of examples: "
                         f"{[len(x) for x in held]}")
    return plain(dataset)


def rows_of(held: Any, rows: Tensor) -> Any:
    """Returns the batch of these `rows` of columns; of a memory map, only they are read."""
    def one(x: Any) -> Tensor:
        if isinstance(x, Tensor):
            return x[rows.to(x.device)]
        return torch.tensor(x[rows.numpy()])

    return mapped(one, held)


def collated(items: list[Any], collate_fn: Callable[[list[Any]], Any] | None) -> Any:
    """Returns the batch of `items`, tensors `[rows, ...]`.

    collate_fn: makes a batch of one row of a list of one item; without it, entries become tensors
    as by torch's own loader. Raises ShapeError for what is no row, and what `collate_fn` raises.
    """
    if collate_fn is None:
        rows = default_collate([mapped(_entry, _sequences(item)) for item in items])
        return _checked(tuple(rows) if isinstance(rows, list) else rows, items[0])
    rows = [_tuple(plain(collate_fn([item]))) for item in items]
    odd = next((row for row in rows if not is_row(row)), None)
    if odd is not None:
        shapes = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in leaves(odd)]
        raise ShapeError("collate_fn is called with a list of one item, so that no row can see "
                         f"another, and must return tensors of one row, [1, ...]; it returned a "
                         f"{type(odd).__name__} of {shapes}")
    return joined(rows)


def joined(rows: list[Any]) -> Any:
    """Returns the batch of rows `[1, ...]`. Raises ShapeError if they hold other entries."""
    if len({str(pytree.tree_structure(row)) for row in rows}) != 1:
        raise ShapeError("rows of one batch hold different entries")
    return mapped(lambda *parts: torch.cat(parts), *rows)


def is_row(row: Any) -> bool:
    """True for a tuple or mapping of tensors `[1, ...]`."""
    return isinstance(row, tuple | Mapping) and bool(leaves(row)) and all(
        isinstance(x, Tensor) and x.shape[:1] == (1,) for x in leaves(row))


def one_row(batch: Any, row: int) -> tuple[Any, ...]:
    """Returns the arguments of a step on one row of `batch`, tensors `[1, ...]`."""
    return as_arguments(mapped(lambda x: x[row:row + 1], batch))


def length(batch: Any) -> int:
    """Returns the number of rows of a batch."""
    return len(leaves(batch)[0])


def is_array(x: Any) -> bool:
    """True for a tensor or a numpy array. numpy need not be installed."""
    return isinstance(x, Tensor) or (hasattr(x, "__array_interface__") and hasattr(x, "shape"))


def _tuple(batch: Any) -> Any:
    return tuple(batch) if isinstance(batch, list) else batch


def _sequences(item: Any) -> Any:
    """`item`, with a list of numbers in a mapping as the tensor that it stands for."""
    if not isinstance(item, Mapping):
        return item
    return {key: torch.tensor(x) if _numbers(x) else _sequences(x) for key, x in item.items()}


def _numbers(x: Any) -> bool:
    if not isinstance(x, list) or not x:
        return False
    return all(isinstance(entry, bool | int | float) or _numbers(entry) for entry in x)


def _entry(x: Any) -> Any:
    # A copy: a row of a memory map may be read-only, and workers send it as a tensor anyway.
    return torch.tensor(x) if is_array(x) and not isinstance(x, Tensor) else x


def _checked(batch: Any, item: Any) -> Any:
    entries = leaves(batch)
    if isinstance(batch, tuple | Mapping) and all(isinstance(x, Tensor) for x in entries):
        return batch
    odd = "" if isinstance(item, Tensor) else f" of {_kinds(item)}"
    raise ShapeError(f"an item of the dataset must be {ROWS}; got {type(item).__name__}{odd}. Take "
                     "other entries out, or give collate_fn=")


def _kinds(item: Any) -> str:
    if isinstance(item, Mapping):
        return str({key: type(x).__name__ for key, x in item.items()})
    return str([type(x).__name__ for x in leaves(item)])
