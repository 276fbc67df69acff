"""The two tables: layer kinds and strategies, by name, in an order that is written down.

Both are entered by a decorator, by the library and by users alike. `fxperex.layers` and
`fxperex.strategies` import every file of their folders, so that a new file is all it takes.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fxperex.contract import LATE, LayerKind, Strategy
from fxperex.errors import ConfigError

NAIVE = "naive"  # a way to run the whole step, one example at a time; not a node's choice
LAST = 10**6  # the order of `generic`, which claims every node
WORDS = ("auto", "measure")  # leave the choice to the planner

_KINDS: dict[str, LayerKind] = {}
_STRATEGIES: dict[str, Strategy] = {}
_T = TypeVar("_T", bound=type)


def layer_kind(name: str, order: int = LATE) -> Callable[[_T], _T]:
    """Class decorator: adds a LayerKind to the table under `name`.

    order: lower ones are asked first which nodes they claim. Registering a class again replaces
    it. Raises ConfigError for another class of that name, and for a class that is not complete.
    """
    return _register(_KINDS, LayerKind, name, order, "layer kind")


def strategy(name: str, order: int = LATE) -> Callable[[_T], _T]:
    """Class decorator: adds a Strategy to the table under `name`.

    order: of two that cost the same, the lower one is taken. Registering a class again replaces
    it. Raises ConfigError for another class of that name, and for a class that is not complete.
    """
    return _register(_STRATEGIES, Strategy, name, order, "strategy")


def kinds() -> dict[str, LayerKind]:
    """Returns {name: layer kind}, sorted by order; `generic` comes after all others.

    `fxperex.transform` imports the library's own, and `import fxperex` imports that.
    """
    return dict(_KINDS)


def strategies() -> dict[str, Strategy]:
    """Returns {name: strategy}, sorted by order; see `kinds`."""
    return dict(_STRATEGIES)


def ways() -> list[str]:
    """Returns all names that `transform(strategy=...)` takes for the whole model, but words."""
    return [*_STRATEGIES, NAIVE]


def import_files(package: str, folders: Iterable[str]) -> None:
    """Imports every file of a package's `folders`; what registers itself there is in the tables."""
    for module in pkgutil.iter_modules(folders):
        importlib.import_module(f"{package}.{module.name}")


def same_definition(former: Any, latter: Any) -> bool:
    """Returns True if `latter` is a new version of `former`: a cell or a file that ran again."""
    same = former.__module__ == latter.__module__ and former.__qualname__ == latter.__qualname__
    return same and latter.__name__ not in {"_", "<lambda>"}


def _register(table: dict[str, Any], base: type, name: str, order: int,
              what: str) -> Callable[[_T], _T]:
    def enter(cls: _T) -> _T:
        former = table.get(name)
        if former is not None and not same_definition(type(former), cls):
            raise ConfigError(f"{what} {name!r} is registered already, by {_source(type(former))}; "
                              f"{_source(cls)} needs a name of its own")
        _check(cls, base, name, what)
        instance = cls()
        instance.name, instance.order = name, order
        table[name] = instance
        ordered = sorted(table.items(), key=lambda item: item[1].order)
        table.clear()
        table.update(ordered)
        return cls

    return enter


def _check(cls: type, base: type, name: str, what: str) -> None:
    """Raises ConfigError if `cls` cannot be a `base` of that name."""
    if name in (*WORDS, NAIVE):
        raise ConfigError(f"{what} {name!r}: the word has a meaning of its own as strategy=...; "
                          "choose another")
    if not issubclass(cls, base):
        raise ConfigError(f"{what} {name!r}: {_source(cls)} must be a subclass of "
                          f"fxperex.extend.{base.__name__} or of one of its forms")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise ConfigError(f"{what} {name!r}: {_source(cls)} does not define {missing}")


def _source(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
