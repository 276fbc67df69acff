"""Where a stage runs and how large, and the three ways to multiply that it looks at."""

from __future__ import annotations

import contextlib
import datetime
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

DTYPES = ("float32", "tf32", "bfloat16")
# Relative error of a clipped sum, its norms and factors against the float64 loop.
TOLERANCE = {"float32": 1e-5, "tf32": 2e-2, "bfloat16": 1e-1}
OPTIONAL = (
    "triton",
    "numpy",
    "torchvision",
    "transformers",
    "opacus",
    "dp-accounting",
    "cryptography",
    "safetensors",
)


@dataclass(frozen=True)
class Setting:
    name: str
    tiny: bool
    cache: Path

    @property
    def device(self) -> torch.device:
        return torch.device(self.name)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def backend(self) -> str:
        """Compiled steps are what is looked at; compiling for a CPU is left out of a rehearsal."""
        return "eager" if self.tiny and not self.on_gpu else "inductor"

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        """Returns date, device and versions, which every file begins with."""
        kind = (
            torch.cuda.get_device_name()
            if self.on_gpu
            else f"{platform.machine()}, {torch.get_num_threads()} threads"
        )
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": kind,
            "tiny": self.tiny,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                **{name: version(name) for name in OPTIONAL},
            },
        }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not there"


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[torch.dtype | None]:
    """Yields the dtype of autocast; within it float32 products are exact, TF32, or torch's own.

    "float32": exact; "tf32": of cuBLAS and cuDNN; "bfloat16": autocast, flags as torch has them.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype != "float32"
    try:
        yield torch.bfloat16 if dtype == "bfloat16" else None
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
