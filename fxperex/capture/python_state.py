"""Python's own state that a forward pass reaches: numbers, strings, generators of random numbers.

A captured program holds the value of such state at the time of capture, for ever: a warm-up counter
that has stopped, a layer that is always or never skipped. So what forward can reach by name is read
before and after it is traced: attributes of modules, closures' cells, globals that the code names,
and what those hold in lists, dicts, sets and plain objects. Code and objects of installed packages
are left out, but for attributes of modules: their caches and loggers change without harm.
"""

from __future__ import annotations

import functools
import random
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxperex.capture.source_lines import is_users

STATE = (int, float, str, bool)
DEEP = 4  # containers inside containers
FUNCTIONS = 2  # forward, what it names, what that names
LONG = 1000  # entries: a table of data is no counter
DRAWS = "the state of "  # how names of generators of random numbers begin
INSTALLED = tuple(
    sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
INTERNAL = set(vars(nn.Module()))
Put = Callable[[Any], None]


@dataclass
class Watch:
    """What a forward pass can reach, as `place -> (name, value, how to put it back)`; `changed`
    says what it moved."""

    entries: dict[tuple[Any, Any], tuple[str, Any, Put]] = field(default_factory=dict)
    # by id; kept alive, so that no id is used twice
    visited: dict[int, Any] = field(default_factory=dict)

    def modules(self, model: nn.Module) -> None:
        for path, module in model.named_modules():
            # Export hands out stand-ins for modules that have several names: they share one dict.
            if self._new(vars(module)):
                prefix = f"{path}." if path else ""
                for key, value in list(vars(module).items()):
                    if key not in INTERNAL:
                        put = functools.partial(_put, vars(module), key)
                        self._record(("module", id(vars(module)), key), f"{prefix}{key}", value,
                                     put, 0)
                if _written(_file(type(module).forward)):
                    self.function(type(module).forward, 0)

    def function(self, run: Any, deep: int) -> None:
        """Cells of a function, and globals that its code names."""
        if isinstance(run, functools.partial):
            for part in (run.func, *run.args, *run.keywords.values()):
                self._value(part, "an argument of a partial", deep)
            return
        if isinstance(run, types.MethodType):
            self._value(run.__self__, type(run.__self__).__name__, deep)
            run = run.__func__
        if not isinstance(run, types.FunctionType) or deep > FUNCTIONS or not self._new(run):
            return
        for name, cell in zip(run.__code__.co_freevars, run.__closure__ or (), strict=True):
            self._cell(cell, name, deep + 1)
        if _written(run.__code__.co_filename):
            for name in sorted(_names(run.__code__) & run.__globals__.keys()):
                put = functools.partial(_put, run.__globals__, name)
                self._record((id(run.__globals__), name), f"the global {name}",
                             run.__globals__[name], put, deep + 1)

    def _cell(self, cell: types.CellType, name: str, deep: int) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet
            return

        def put(old: Any) -> None:
            cell.cell_contents = old

        self._record((id(cell), ""), f"{name} of an enclosing function", value, put, deep)

    def _new(self, value: object) -> bool:
        if id(value) in self.visited:
            return False
        self.visited[id(value)] = value
        return True

    def _record(self, place: tuple[Any, ...], name: str, value: Any, put: Put, deep: int) -> None:
        if isinstance(value, STATE):
            self.entries[place] = name, value, put
        else:
            self._value(value, name, deep)

    def _value(self, value: Any, name: str, deep: int) -> None:
        """What a value holds."""
        generator = _generator(value)
        if generator is not None:
            self.entries[id(value), "state"] = f"{DRAWS}{name}", *generator
        elif isinstance(value, nn.Module):
            self.modules(value)
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            self.function(value, deep)
        elif deep < DEEP and not isinstance(value, Tensor):
            for place, key, inner, put in _inside(value) if self._new(value) else ():
                self._record((place, key),
                             f"{name}[{key!r}]" if place == id(value) else f"{name}.{key}", inner,
                             put, deep + 1)

    def changed(self, after: Watch) -> list[str]:
        """Names of what differs in `after`, all put back. A number added to a list or dict that was
        there counts."""
        changes = []
        for place, (name, value, put) in self.entries.items():
            _, current, _ = after.entries.get(place, (name, None, put))
            if current is not value and (type(current) is not type(value) or current != value):
                changes.append(name)
                put(value)
        return changes + [name for place, (name, *_) in after.entries.items()
                        if place not in self.entries and place[0] in self.visited]


def watched(model: nn.Module, run: Any) -> Watch:
    """Returns the Watch of what `run(model, ...)` reaches by name, and of the random numbers of
    Python and numpy."""
    watch = Watch()
    watch.modules(model)
    watch.function(run, 0)
    watch.entries["random", ""] = f"{DRAWS}Python's random", random.getstate(), random.setstate
    # numpy is never imported for this: what is not there has not been drawn from.
    legacy = getattr(getattr(sys.modules.get("numpy"), "random", None), "mtrand", None)
    if legacy is not None:
        state = legacy._rand.get_state()
        watch.entries["numpy", ""] = f"{DRAWS}numpy.random", repr(
            state), lambda _: legacy._rand.set_state(state)
    return watch


def _generator(value: Any) -> tuple[Any, Put] | None:
    """(state, how to put it back) of a generator of random numbers, None if it is none."""
    if isinstance(value, random.Random):
        return value.getstate(), value.setstate
    if isinstance(value, torch.Generator):
        return value.get_state().tolist(), functools.partial(_restore, value, value.get_state())
    bits = getattr(value, "bit_generator",
                   None) if type(value).__module__.startswith("numpy") else None
    if bits is None:
        return None
    numbers = bits.state

    def put(_: Any) -> None:
        bits.state = numbers

    return repr(numbers), put


def _restore(generator: torch.Generator, state: Tensor, _: Any) -> None:
    generator.set_state(state)


def _put(holder: Any, key: Any, old: Any) -> None:
    if isinstance(holder, MutableMapping) or (isinstance(holder, MutableSequence)
                                              and key < len(holder)):
        holder[key] = old


def _inside(value: Any) -> Iterator[tuple[Any, Any, Any, Put]]:
    """(place, key, entry, how to put it back) of a list, dict, set, or an object or class of the
    user's own."""
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, MutableMapping):
        pairs = ((key, inner) for key, inner in list(value.items()) if isinstance(key, STATE))
    elif isinstance(value, list | tuple | deque):
        pairs = enumerate(list(value))
    elif isinstance(value, set | frozenset):
        pairs = [("length", len(value))]
    elif _own(value):
        held = vars(value)
        for key, inner in list(held.items()):
            if not key.startswith("__") and not (isinstance(value, type) and callable(inner)):
                yield ("object", id(value)), key, inner, functools.partial(_put, held, key)
        return
    else:
        return
    if len(value) <= LONG:
        for key, inner in pairs:
            yield id(value), key, inner, functools.partial(_put, value, key)


def _own(value: Any) -> bool:
    """True for an object or a class of the user's own code."""
    kind = value if isinstance(value, type) else type(value)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return hasattr(value, "__dict__") and not isinstance(value, types.ModuleType) and _written(file)


def _written(file: str | None) -> bool:
    """True for a file that the user wrote: of no installed package, whose caches and loggers are no
    counters.
    """
    return bool(file) and is_users(str(file)) and not str(file).startswith(INSTALLED)


def _file(function: Any) -> str:
    return str(getattr(getattr(function, "__code__", None), "co_filename", torch.__file__))


def _names(code: types.CodeType) -> set[str]:
    """Names of globals in a function's code and in the functions inside it."""
    return set(
        code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, types.CodeType)))
