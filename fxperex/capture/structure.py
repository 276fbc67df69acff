"""A batch as people hand it over -> its tensors in a row, and back.

A batch is a tuple, or a mapping of what a model takes by name; either may hold tuples, lists and
mappings. Every later stage sees a tuple of tensors, and messages call each by its place in the
batch. An entry of a mapping that is no tensor is a constant: the program holds its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxperex.errors import ShapeError

Tensors = tuple[Tensor, ...]
CONSTANTS = bool | int | float | str | None
ENTRIES = ("a batch is a tuple of tensors, or a mapping of tensors for model(**batch); both may "
           "hold further ones. Numbers, strings, bools and None may be entries of a mapping, as "
           "constants")


@dataclass(frozen=True)
class BatchStructure:
    """names: of each tensor, in order, such as "batch[0]" or "batch['input_ids']".

    mapping: whether the model takes the batch by name; constants: {name: value} of the rest.
    """

    names: tuple[str, ...]
    mapping: bool = False
    constants: Mapping[str, CONSTANTS] = field(default_factory=dict)

    @classmethod
    def of_tuple(cls, count: int) -> BatchStructure:
        """Returns the structure of a tuple of `count` tensors."""
        return cls(tuple(f"batch[{i}]" for i in range(count)))

    @property
    def is_flat(self) -> bool:
        """True for a plain tuple of tensors."""
        return self == BatchStructure.of_tuple(len(self.names))

    def __str__(self) -> str:
        constants = [f"{name} = {value!r}" for name, value in self.constants.items()]
        text = f"tensors: {', '.join(self.names)}"
        return text + (f"; constants: {', '.join(constants)}" if constants else "")

    def tensors(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the tensors of a step's `arguments`, in order: the batch itself, or the entries
        of a tuple one by one. Raises ShapeError.
        """
        batch = self._batch(arguments)
        if self.is_flat:
            return batch  # type: ignore[return-value]
        entries = dict(_leaves(batch))
        odd = [name for name in self.names if name not in entries]
        more = [n for n in entries if n not in self.names and n not in self.constants]
        if odd or more:
            raise ShapeError(f"this step was made for a batch of {self}. This batch lacks "
                             f"{', '.join(odd) or 'nothing'} and has besides "
                             f"{', '.join(more) or 'nothing'}. Transform again for another")
        for name, value in self.constants.items():
            present = entries.get(name, value)
            if type(present) is not type(value) or present != value:
                raise ShapeError(f"{name} is a constant of this step, {value!r}; this batch has "
                                 f"{_short(present)}. Transform again for another value")
        return tuple(entries[name] for name in self.names)

    def _batch(self, arguments: tuple[Any, ...]) -> Any:
        only = arguments[0] if len(arguments) == 1 else None
        if self.mapping != isinstance(only, Mapping):
            kind = "mapping, step(batch)" if self.mapping else "tuple of tensors, step(*batch)"
            if self.mapping or isinstance(only, Mapping):
                raise ShapeError(f"this step takes its batch as a {kind}: {self}; got "
                                 f"{[type(x).__name__ for x in arguments]}")
        if self.mapping:
            return only
        # A tuple of one tuple may stand for itself or for its arguments: the names decide.
        itself = isinstance(only, tuple) and (
            self.is_flat or {name for name, _ in _leaves(only)} >= set(self.names))
        return only if itself else arguments


def taken_apart(batch: Any) -> tuple[BatchStructure, Tensors, Callable[[Tensors], Any]]:
    """Returns (structure, tensors, what makes the batch again of such tensors).

    Raises ShapeError for what is no batch.
    """
    if not isinstance(batch, tuple | Mapping) or not batch:
        raise ShapeError(f"batch must be a tuple of tensors, examples first, or a mapping of them; "
                         f"got {type(batch).__name__}{_kinds(batch)}: {ENTRIES}")
    ordinary = plain(batch)
    entries = dict(_leaves(ordinary))
    values, spec = pytree.tree_flatten(ordinary)
    tensors = {n: x for n, x in entries.items() if isinstance(x, Tensor)}
    constants = {n: x for n, x in entries.items() if n not in tensors}
    for path, value in pytree.tree_flatten_with_path(ordinary)[0]:
        _check_entry(batch, path, value)
    if not tensors:
        raise ShapeError(f"batch has no tensor{_kinds(batch)}: {ENTRIES}")
    places = [i for i, x in enumerate(values) if isinstance(x, Tensor)]

    def together(shown: Tensors) -> Any:
        leaves = [None if isinstance(x, Tensor) else x for x in values]
        for place, x in zip(places, shown, strict=True):
            leaves[place] = x
        return pytree.tree_unflatten(leaves, spec)

    structure = BatchStructure(tuple(tensors), isinstance(batch, Mapping), constants)
    return structure, tuple(tensors.values()), together


def plain(value: Any) -> Any:
    """Returns `value` with every mapping, of whatever class, as a dict."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(plain, value))
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    return value


def leaves(batch: Any) -> list[Any]:
    """Returns what `batch` holds, in order; of a legal batch its tensors."""
    return pytree.tree_leaves(plain(batch))


def mapped(function: Callable[..., Any], *batches: Any) -> Any:
    """Returns a batch of the same structure, of what `function` makes of each entry, or of as many
    as there are batches.
    """
    return pytree.tree_map(function, *map(plain, batches))


def as_arguments(batch: Any) -> tuple[Any, ...]:
    """Returns the arguments of a step: the entries of a tuple, or a mapping by itself."""
    return batch if isinstance(batch, tuple) else (batch,)


def _leaves(batch: Any) -> Iterable[tuple[str, Any]]:
    """Yields (name, value) of every entry that holds no others."""
    return [(f"batch{pytree.keystr(path)}", value)
            for path, value in pytree.tree_flatten_with_path(plain(batch))[0]]


def _check_entry(batch: Any, path: tuple[Any, ...], value: object) -> None:
    named = isinstance(path[-1], pytree.MappingKey)
    constant = value is None or (named and isinstance(value, bool | int | float | str))
    if not isinstance(value, Tensor) and not constant:
        raise ShapeError("batch must be a tuple of tensors, examples first, or a mapping of them; "
                         f"got {type(batch).__name__}{_kinds(batch)}, and in it "
                         f"batch{pytree.keystr(path)} is {_short(value)}: {ENTRIES}")


def _kinds(batch: object) -> str:
    if isinstance(batch, Mapping):
        return f" of { {key: type(x).__name__ for key, x in batch.items()} }"
    if isinstance(batch, tuple | list):
        return f" of {[type(x).__name__ for x in batch]}"
    return ""


def _short(value: object) -> str:
    if isinstance(value, CONSTANTS):
        return f"{value!r:.60}"
    return f"a {type(value).__name__}"
