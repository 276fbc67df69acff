"""The versions that the numbers of a run depend on."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("fxperex", "torch", "numpy", "dp-accounting", "cryptography")


def versions() -> dict[str, str]:
    """Returns the version of Python and of each package that a run's numbers depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
