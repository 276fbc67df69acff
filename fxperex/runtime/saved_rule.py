"""A clipping rule as JSON, and back: its class by import path, its settings by name.

A user's own rule is saved like the library's if it is a dataclass of plain values whose class can
be imported. Whether its code is the one that was saved shows when the step is loaded: the factors
that the saved code takes must be those of the rule.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import Any

import torch

from fxperex import clipping
from fxperex.clipping import Clip
from fxperex.errors import ConfigError, PackageError

# The library's own rules are saved by their name alone.
RULES: dict[str, type[Clip]] = {
    r.__name__: r
    for r in (clipping.Flat, clipping.Automatic, clipping.Normalised, clipping.PerLayer)
}


def rule_to_json(rule: Clip) -> dict[str, Any]:
    """Returns {"rule": class, "settings": {field: value}}. Raises ConfigError, with the reason, for
    a rule that would not come back equal.
    """
    reason, described = _describe(rule)
    if reason:
        raise ConfigError(f"the clipping rule {rule!r} cannot be written down: {reason}. save "
                          "takes a dataclass of numbers, strings and tuples of them, whose class "
                          "is at the top of a module that can be imported")
    return described


def _describe(rule: Clip) -> tuple[str, dict[str, Any]]:
    """(The reason why `rule` cannot be saved, or ""; what is saved)."""
    kind = type(rule)
    if not dataclasses.is_dataclass(rule):
        return f"{kind.__qualname__} is no dataclass, so its settings are not known", {}
    settings = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}
    for name, value in settings.items():
        if not _is_plain(value):
            return f"its field {name!r} is no JSON ({type(value).__name__})", {}
    path = kind.__name__ if RULES.get(kind.__name__) is kind else _import_path(kind)
    described = {"rule": path, "settings": json.loads(json.dumps(settings))}
    try:
        again = _build(described)
    except Exception as error:  # importing and constructing run the user's code
        return f"it cannot be made again ({type(error).__name__}: {error})", {}
    if type(again) is not kind or again != rule:
        return f"made again from {path} and its fields it is {again!r}", {}
    ours, theirs = rule.inputs(), again.inputs()
    same = len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
    return ("" if same else "it holds a state that its fields do not say"), described


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def _import_path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def rule_from_json(described: dict[str, Any]) -> Clip:
    """Returns the rule. Raises PackageError for a user's rule that cannot be imported or made here;
    KeyError or TypeError for what is no rule of the library's.
    """
    if ":" not in described["rule"]:
        return _build(described)
    try:
        return _build(described)
    except Exception as error:  # importing and constructing run the user's code
        raise PackageError(f"the saved step clips by {described['rule']}, which cannot be imported "
                           f"and made here ({type(error).__name__}: {error}). Make its module "
                           "importable, as it was when the step was saved") from error


def _build(described: dict[str, Any]) -> Clip:
    module, _, name = described["rule"].rpartition(":")
    if not module:
        return RULES[name](**_settings(described))
    if module == "__main__" or "<" in name:
        raise ImportError(f"{module}:{name} exists in one process alone")
    kind: Any = importlib.import_module(module)
    for part in name.split("."):
        kind = getattr(kind, part)
    if not isinstance(kind, type) or not issubclass(kind, Clip):
        raise TypeError(f"{module}:{name} is no subclass of fxperex.clipping.Clip")
    return kind(**_settings(described))


def _settings(described: dict[str, Any]) -> dict[str, Any]:
    # JSON has no tuples; a frozen dataclass has no lists.
    return {name: _tuples(value) for name, value in described["settings"].items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
