"""Where profiles are stored: in the user's cache folder, or shipped with the package."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path

import torch

from fxperex.config import cache_folder
from fxperex.devices.profile import VERSION, Profile
from fxperex.errors import ConfigError
from fxperex.files import write_whole

SHIPPED = Path(__file__).parent.parent / "profiles"


def profile(device: torch.device) -> Profile:
    """Returns the profile of `device`: calibrated on this machine, else shipped. Never measures.

    A broken or foreign file in the cache is ignored with a warning. Raises ConfigError for a device
    that has no profile.
    """
    path = cache_folder() / f"{device_name(device)}.json"
    try:
        stored = Profile.from_json(path.read_text())
        if stored.device == device_name(device) and stored.torch == torch.__version__:
            return stored
        warnings.warn(f"device profile {path} was measured on {stored.device} with torch "
                      f"{stored.torch}; not used. Measure this device with `fxperex "
                      "calibrate`", stacklevel=2)
    except FileNotFoundError:
        pass
    except (OSError, ConfigError) as error:
        warnings.warn(f"device profile {path} is not used: {error}. Measure anew with `fxperex "
                      "calibrate`", stacklevel=2)
    return _shipped(device)


def _shipped(device: torch.device) -> Profile:
    """Returns the shipped profile of the same machine and number of threads, else of the device's
    type (the last by name).
    """
    paths = sorted(SHIPPED.glob(f"{device.type}-*.json"))
    if not paths:
        raise ConfigError(f"no profile is known for device type {device.type!r}; there are: "
                          f"{', '.join(shipped_types())}")
    own = device_name(device)
    alike = [p for p in paths if own.startswith(p.name.partition("-torch")[0] + "-")]
    return Profile.from_json((alike or paths)[-1].read_text())


def shipped_types() -> list[str]:
    return sorted({p.name.partition("-")[0] for p in SHIPPED.glob("*.json")})


def target(name: str) -> torch.device:
    """Returns the device that `name` means for planning; it need not be present. Raises ConfigError
    unless there is a profile for its type.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; plans are made for: "
                          f"{', '.join(shipped_types())}") from error
    if device.type not in shipped_types():
        raise ConfigError(f"no profile is known for device {name!r}; plans are made for: "
                          f"{', '.join(shipped_types())}")
    return device


def present(device: torch.device) -> None:
    """Raises ConfigError unless `device` can be used on this machine."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {str(device)!r} is not there: torch sees no CUDA device on "
                          "this machine")


def save(measured: Profile) -> Path:
    """Returns the path in the cache folder that `measured` was written to. Raises ConfigError if it
    cannot be written.
    """
    path = cache_folder() / f"{measured.device}.json"
    try:
        write_whole(path, measured.to_json().encode())
    except OSError as error:
        raise ConfigError(f"the profile cannot be written to {path}: {error}. Set FXPEREX_CACHE "
                          "to another folder") from error
    return path


def device_name(device: torch.device) -> str:
    """Returns the name under which a device's measurements are stored: it has the hardware, the
    threads and the torch version.
    """
    if device.type == "cuda" and torch.cuda.is_available():
        kind = torch.cuda.get_device_name(device)
    else:
        host = f"{platform.machine()}-{torch.get_num_threads()}t"
        kind = host if device.type == "cpu" else "absent"
    return f"{device.type}-{kind}-torch{torch.__version__}-v{VERSION}".replace(" ", "_").replace(
        "/", "_")
