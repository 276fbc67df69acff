"""Checks of the numbers that a privacy claim rests on. Each returns its value or raises
ConfigError.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from fxperex.errors import ConfigError


def positive(value: object, name: str, most: float = math.inf) -> float:
    """Returns `value` as a finite float above 0 and at most `most`. Raises ConfigError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= most:
        within = "" if most == math.inf else f" and at most {most}"
        raise ConfigError(f"{name} must be a finite number above 0{within}; got {value!r}")
    return float(value)


def probability(value: object, name: str) -> float:
    """Returns `value` as a float strictly between 0 and 1. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{name} must be a number strictly between 0 and 1; got {value!r}")
    return float(value)


def whole_number(value: object, name: str, least: int = 0) -> int:
    """Returns `value` as an int of at least `least`. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}; got {value!r}")
    return value


def one_of(value: object, name: str, valid: Any) -> Any:
    """Returns `value` if it is among `valid`. Raises ConfigError that lists them."""
    if not isinstance(value, str) or value not in valid:
        raise ConfigError(f"{name} must be one of {', '.join(valid)}; got {value!r}")
    return value


def needed(module: str) -> Any:
    """Returns the imported optional `module`. Raises ConfigError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = module.split(".")[0].replace("_", "-")
        raise ConfigError(f'this needs the package {package}: pip install '
                          '"fxperex[accounting]"') from e
