"""What a launch would compile on a GPU that is not there: its kernel and arguments, specialised as
Triton does.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fxperex.kernels import device
from fxperex.kernels.gpu import tuning

POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8"
}
KERNELS = {
    "linear": "linear_tuned", "conv": "conv_tuned", "gram": "gram_tuned",
    "depthwise": "depthwise_kernel", "affine": "affine_kernel", "embedding": "embedding_kernel",
    "weighted": "weighted_kernel", "chacha": "chacha_kernel"
}


@dataclass(frozen=True)
class Launch:
    """One kernel and what it was launched with: arguments by name, constants and a configuration's
    choices among them.
    """

    name: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


class Recorder:
    """Stands for a kernel of the library: notes the launch instead of making it, in every
    configuration that would be tried.
    """

    def __init__(self, name: str, kernel: Any, launches: list[Launch],
                 during: Callable[[], None]) -> None:
        self.name, self.kernel, self.launches, self.during = name, kernel, launches, during

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert len(grid) == 1 and grid[0] > 0
        return self._launch

    def _launch(self, *args: Any, **keywords: Any) -> None:
        self.during()
        inner = getattr(self.kernel, "fn", None) if hasattr(self.kernel, "configs") else self.kernel
        arguments = dict(zip(inner.arg_names, args, strict=False))
        configs: list[Any] = [triton.Config({}, num_warps=4, num_stages=3)]
        if inner is not self.kernel:
            self.kernel.nargs = arguments
            configs = self.kernel.prune_configs(keywords)
        for config in configs:
            chosen = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            every = arguments | config.kwargs | keywords
            options = chosen | {k: every.pop(k) for k in list(every) if k not in inner.arg_names}
            self.launches.append(Launch(self.name, inner, every, options))


def recorded(monkeypatch: pytest.MonkeyPatch, sm: int, run: Callable[[], Any],
             during: Callable[[], None] = lambda: None) -> list[Launch]:
    """Returns the launches, of every configuration, that `run` would make on a GPU of compute
    capability `sm`.
    """
    launches: list[Launch] = []
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "capability", lambda _: divmod(sm, 10))
        patch.setattr(device, "_processors", lambda _: 132)
        for name, attribute in KERNELS.items():
            module = module_of(name)
            patch.setattr(module, attribute,
                          Recorder(name, getattr(module, attribute), launches, during))
        run()
    return launches


def module_of(name: str) -> ModuleType:
    return import_module(f"fxperex.kernels.gpu.{name}")


def compiled(launch: Launch, sm: int) -> Any:
    """Returns what Triton makes of a launch: integers that are 1 are constants, those that 16
    divides are said to be.
    """
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    divisible: dict[tuple[int], Any] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (type(value) is int and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        pointer = isinstance(value, Tensor)
        signature[parameter.name] = POINTERS[value.dtype] if pointer else "i32" if abs(
            value) < 2**31 else "i64"
        if pointer or value % 16 == 0:
            divisible[(i,)] = [["tt.divisibility", 16]]
    return triton.compile(ASTSource(launch.kernel, signature, constants, divisible),
                          target=GPUTarget("cuda", sm, 32), options=launch.options)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers and local bytes a thread, read from the machine code."""
    (folder / "kernel.cubin").write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    assert tool.exists(
    ), "Triton's own cuobjdump reads the machine code; without it spills would go unseen"
    text = subprocess.run([tool, "--dump-resource-usage", folder / "kernel.cubin"],
                          capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
