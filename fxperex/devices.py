"""Device profiles: rates of the kernels the strategies are made of, measured once and kept.

A profile is measured in a few seconds on first use and written to the user's cache folder, named for device,
threads and torch version; a broken or foreign file is measured anew.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

VERSION = 4
# Classes of work. Products in flop/s; `im2col` in bytes of patches per second; `store` in bytes per second
# of memory touched for the first time, which large stored gradients always are.
RATES = ("mm", "bmm", "gram", "conv_weight", "conv_grouped", "conv_single", "im2col", "store")


PATIENCE = 2.0  # seconds spent on one kernel at most


@dataclass(frozen=True)
class Profile:
    """`rates` by class of work (see RATES), `bandwidth` in byte/s, `launch` in seconds per operation."""

    device: str
    rates: dict[str, float]
    bandwidth: float
    launch: float

    def seconds(self, work: dict[str, float], moved: float, launches: int) -> float:
        """Returns predicted seconds: work of each class at its rate, traffic, launches."""
        return sum(w / self.rates[k] for k, w in work.items()) + moved / self.bandwidth + launches * self.launch


def profile(device: torch.device) -> Profile:
    """Returns the profile of `device`, from the cache or measured now."""
    name = _name(device)
    path = _folder() / f"{name}.json"
    try:
        found = json.loads(path.read_text())
        if found["version"] == VERSION and found["device"] == name and set(found["rates"]) == set(RATES) \
                and min(found["bandwidth"], found["launch"], *found["rates"].values()) > 0:
            return Profile(name, found["rates"], found["bandwidth"], found["launch"])
        warnings.warn(f"device profile {path} is of another version or device; measuring anew", stacklevel=2)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"device profile {path} cannot be read ({error}); measuring anew", stacklevel=2)
    measured = measure(device)
    _write(path, measured)
    return measured


def measure(device: torch.device) -> Profile:
    """Returns a Profile measured on `device` now (a few seconds). Random state is left as it was."""
    run = _Timer(device)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.ones(shape, device=device, dtype=dtype)

    x, y, big = make(64, 768), make(768, 768), make(1 << 23)
    a, b = make(16, 64, 64), make(16, 64, 576)
    d = make(16, 16, 640, dtype=torch.float64)
    small = make(16, 64, 8, 8)
    image, grad, weight = make(16, 64, 16, 16), make(16, 64, 16, 16), make(64, 64, 3, 3)

    def conv_weight(images: torch.Tensor, grads: torch.Tensor) -> None:
        torch.ops.aten.convolution_backward(grads, images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                                            [False, True, False])

    grouped, filters = image.reshape(16, 64, 16, 16).transpose(0, 1), grad.reshape(16 * 64, 1, 16, 16)
    conv = 2.0 * 16 * 256 * 64 * 576
    tiny = make(8)
    with torch.no_grad():
        rates = {
            "mm": 2.0 * 64 * 768 * 768 / run(lambda: x @ y),
            "bmm": 2.0 * 16 * 64 * 64 * 576 / run(lambda: a @ b),
            "gram": 2.0 * 16 * 16 * 16 * 640 / run(lambda: d @ d.transpose(1, 2)),
            "conv_weight": conv / run(lambda: conv_weight(image, grad)),
            "conv_grouped": conv / run(lambda: F.conv2d(grouped, filters, padding=1, groups=16)),
            "conv_single": conv / 16 / run(lambda: conv_weight(image[:1], grad[:1])),
            "im2col": 4.0 * 16 * 576 * 64 / run(lambda: F.unfold(small, 3, 1, 1)),
            "store": 4.0 * (1 << 24) / run(lambda: torch.empty(1 << 24, device=device).fill_(1.0)),
        }
        out = torch.empty_like(big)
        copied = run(lambda: torch.add(big, 1, out=out))
        return Profile(_name(device), rates, 8.0 * big.numel() / copied, run(lambda: tiny + 1))


class _Timer:
    """Least seconds of a call on one device.

    Other work on the machine only ever adds time, and a profile is kept: a median taken while a second program
    ran was 30 times too slow for some kernels and 2 times for others, and every later plan followed it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, call: Callable[[], object], repeats: int = 40) -> float:
        call()
        best, begun = math.inf, time.perf_counter()
        for _ in range(repeats):
            self._wait()
            start = time.perf_counter()
            call()
            self._wait()
            best = min(best, time.perf_counter() - start)
            if time.perf_counter() - begun > PATIENCE:
                break
        return best

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _name(device: torch.device) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}-{torch.get_num_threads()}t"
    return f"{device.type}-{kind}-torch{torch.__version__}-v{VERSION}".replace(" ", "_").replace("/", "_")


def _folder() -> Path:
    return Path(os.environ.get("FXPEREX_CACHE", Path.home() / ".cache" / "fxperex"))


def _write(path: Path, found: Profile) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"version": VERSION, **asdict(found)}, indent=1))
        temporary.replace(path)
    except OSError as error:
        warnings.warn(f"device profile {path} cannot be written ({error}); it will be measured again", stacklevel=3)
