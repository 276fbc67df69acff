"""Objects of the user's whose state a checkpoint holds: schedulers, moving averages, anything with
`state_dict` and `load_state_dict`.

A state is written as tensors and plain values, so that reading it runs no code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fxperex.errors import ConfigError, LedgerError

Tensors = dict[str, Tensor]
PREFIX = "registered."


class Registered:
    """The objects by name, and the states of a checkpoint that still wait for theirs."""

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}
        self._waiting: dict[str, Any] = {}
        self._resumed: int | None = None  # the step of the checkpoint, until a step begins
        self._again: Callable[[], None] = lambda: None

    def __bool__(self) -> bool:
        return bool(self._objects)

    def add(self, objects: Mapping[str, Any]) -> None:
        """Registers `objects`, and gives each the state that a resumed run's checkpoint holds.

        Raises ConfigError for what has no state or one that cannot be written; LedgerError if the
        checkpoint has no state for it, or another. Then nothing is registered.
        """
        for name, value in objects.items():
            self._check(name, value)
        for name, value in objects.items():
            if name in self._waiting:
                _give(name, value, self._waiting[name])
        for name in objects:
            self._waiting.pop(name, None)
        self._objects |= objects
        if self._resumed is not None:
            # Making a scheduler writes learning rates into the optimizer.
            self._again()

    def capture(self) -> tuple[Tensors, dict[str, Any]]:
        """Returns (tensors by name, values for JSON) of all states."""
        tensors: Tensors = {}
        plain = {name: _written(value.state_dict(), f"{PREFIX}{name}", tensors)
                 for name, value in self._objects.items()}
        return tensors, plain

    def resume(self, step: int, tensors: Tensors, plain: Mapping[str, Any],
               again: Callable[[], None]) -> None:
        """Keeps the states of a checkpoint of `step` for the objects that will be registered.

        again: puts the optimizer's settings to those of the checkpoint.
        """
        self._waiting = {name: _read(value, tensors) for name, value in plain.items()}
        self._resumed, self._again = step, again

    def check(self) -> None:
        """Raises LedgerError, before a step, if a state of the checkpoint waits for its object."""
        if self._waiting:
            names = ", ".join(self._waiting)
            raise LedgerError(f"the checkpoint holds the state of {names}, which this run would "
                              f"lose: call engine.register({names}=...) before a step")
        self._resumed = None

    def _check(self, name: str, value: Any) -> None:
        if not all(callable(getattr(value, n, None)) for n in ("state_dict", "load_state_dict")):
            raise ConfigError(f"register takes objects with state_dict() and load_state_dict(); "
                              f"{name} is {value!r:.60}")
        if name in self._objects:
            raise ConfigError(f"{name} is registered already; give this object another name")
        twin = next((n for n, x in self._objects.items() if x is value), None)
        if twin is not None:
            raise ConfigError(f"{name} is the object that is registered as {twin} already")
        _written(value.state_dict(), f"{PREFIX}{name}", {})
        if self._resumed and name not in self._waiting:
            raise LedgerError(f"the checkpoint of step {self._resumed} holds no state of {name}, "
                              f"only of {', '.join(self._waiting) or 'nothing registered'}: it "
                              "would begin anew in the middle of a run. Register it after the "
                              "next step if that is meant")


def state_of(name: str, tensors: Tensors, plain: Mapping[str, Any]) -> Any:
    """Returns the state that a checkpoint holds under `name`. Raises KeyError."""
    return _read(plain[name], tensors)


def _give(name: str, value: Any, state: Any) -> None:
    try:
        value.load_state_dict(state)
    except Exception as e:  # each class fails in its own way
        raise LedgerError(f"the state of {name} in the checkpoint does not fit the object: "
                          f"{type(e).__name__}: {e}. Register it as it was") from e


def _written(value: Any, name: str, tensors: Tensors) -> dict[str, Any]:
    """`value` for JSON; its tensors go into `tensors`. Raises ConfigError for any other object."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, Mapping):
        kind = "counter" if isinstance(value, Counter) else "mapping"
        if all(isinstance(k, bool | int | float | str) for k in value):
            return {kind: [[k, _written(x, f"{name}.{k}", tensors)] for k, x in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_written(x, f"{name}.{i}", tensors) for i, x in enumerate(value)]}
    raise ConfigError(f"the state {name.removeprefix(PREFIX)} holds a {type(value).__name__}; a "
                      "checkpoint holds tensors, numbers, strings, and lists and mappings of them, "
                      "named by strings or numbers, so that reading it runs no code")


def _read(plain: Mapping[str, Any], tensors: Tensors) -> Any:
    ((kind, value),) = plain.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "value":
        return value
    if kind in ("mapping", "counter"):
        entries = {key: _read(entry, tensors) for key, entry in value}
        return Counter(entries) if kind == "counter" else entries
    row = [_read(entry, tensors) for entry in value]
    return tuple(row) if kind == "tuple" else row
