"""A GPU that is not there: what torch, Inductor and Triton ask of one, answered from a data
sheet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class Sheet:
    """A card: bytes of L2 and memory, bytes of shared memory that a block may use."""

    name: str
    processors: int
    cache: int
    memory: int
    shared: int


SHEETS = {80: Sheet("NVIDIA A100-SXM4-80GB", 108, 40 << 20, 80 << 30, 163 << 10),
          90: Sheet("NVIDIA H100 80GB HBM3", 132, 50 << 20, 80 << 30, 227 << 10)}


@contextlib.contextmanager
def pretended(sm: int) -> Iterator[None]:
    """Within it there seems to be one GPU of compute capability `sm`; Inductor writes programs for
    it, nothing can run on it.

    What is pretended, and why:
    * `torch.cuda` and Inductor's own interface to it say that the card is there, is current, has
      these properties and no work waiting. The interface is patched too: its static methods were
      bound when it was imported.
    * Inductor's patterns for attention, padded products and the like are not made: that traces
      small real tensors on the card. A program written here may so lack a rewrite that a real card
      gets.
    * Constants of one value are folded by filling one element of them: on the CPU instead.
    * torch's guard of the current device does nothing: its own for machines without a GPU, which
      fake tensors ask for.
    * Triton's driver, which knows for which machine to compile, is one of this capability, and
      launches nothing.

    Inductor remembers some of this for the rest of the process: enter it only in a process that
    does nothing else, and with one capability there.
    """
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        _torch_believes(stack, sm)
        _inductor_believes(stack, sm)
        _triton_believes(stack, sm)
        yield


def _torch_believes(stack: contextlib.ExitStack, sm: int) -> None:
    from torch._dynamo.device_interface import CudaInterface

    card = _properties(sm)
    facts = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_initialized": True,
        "set_device": None,
        "get_device_properties": card,
        "get_device_capability": (card.major, card.minor),
        "get_device_name": card.name,
        "synchronize": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "_lazy_init": None,
        "is_bf16_supported": True,
        "mem_get_info": (card.total_memory, card.total_memory),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "get_arch_list": [f"sm_{sm}"],
        "set_rng_state": None,
        "current_stream": _Nothing(),
    }
    answers = {name: _answering(value) for name, value in facts.items()}
    answers["get_rng_state"] = lambda *_: torch.zeros(16, dtype=torch.uint8, device="cpu")
    answers["stream"] = _Nothing
    for name, answer in answers.items():
        stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        if hasattr(CudaInterface, name) and name != "stream":
            stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(answer)))
    stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", _answering(None)))
    for name in ("exchange_device", "maybe_exchange_device", "get_raw_stream"):
        stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(_answering(0))))
    stack.enter_context(mock.patch.object(CudaInterface, "device", _Nothing))


def _inductor_believes(stack: contextlib.ExitStack, sm: int) -> None:
    from torch._dynamo import device_interface as interfaces
    from torch._inductor.fx_passes import fuse_attention, joint_graph, misc_patterns, pad_mm

    stack.enter_context(mock.patch.dict(interfaces.caching_worker_current_devices, cuda=0))
    stack.enter_context(
        mock.patch.dict(interfaces.caching_worker_device_properties, cuda=[_properties(sm)])
    )
    for module, name in ((fuse_attention, "_sfdp_init"), (pad_mm, "_pad_mm_init"),
                         (misc_patterns, "_misc_patterns_init")):
        stack.enter_context(mock.patch.object(module, name, _answering(None)))
    folder = joint_graph.UniformValueConstantFolder
    fold = folder._deduce_value

    def on_the_cpu(self: Any, node: fx.Node) -> Any:
        with _OnTheCpu():
            return fold(self, node)

    stack.enter_context(mock.patch.object(folder, "_deduce_value", on_the_cpu))


def _triton_believes(stack: contextlib.ExitStack, sm: int) -> None:
    import triton

    drivers = triton.runtime.driver
    stack.callback(setattr, drivers, "_active", getattr(drivers, "_active", None))
    drivers.set_active(_driver(sm))


def _properties(sm: int) -> SimpleNamespace:
    """What `torch.cuda.get_device_properties` would return."""
    sheet = SHEETS[sm]
    return SimpleNamespace(
        name=sheet.name,
        major=sm // 10,
        minor=sm % 10,
        multi_processor_count=sheet.processors,
        total_memory=sheet.memory,
        L2_cache_size=sheet.cache,
        regs_per_multiprocessor=65536,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=sheet.shared,
        shared_memory_per_multiprocessor=sheet.shared + 1024,
        gcnArchName="",
        is_integrated=0,
        uuid="0",
        clock_rate=1980000,
        memory_clock_rate=2619000,
        memory_bus_width=5120,
    )


def _driver(sm: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver

    class Driver(CudaDriver):  # type: ignore[misc]
        def __init__(self) -> None:
            self.utils, self.launcher_cls = _Nothing(), _Nothing
            self.get_device_capability = _answering((sm // 10, sm % 10))
            self.get_current_device = self.get_current_stream = _answering(0)
            self.set_current_device = _answering(None)

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", sm, 32)

        def get_active_torch_device(self) -> torch.device:
            return CUDA

    return Driver()


def _answering(value: Any) -> Any:
    return lambda *_, **__: value


class _Nothing:
    """Stands for streams, guards and launchers: does nothing, whatever is asked of it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream, self.device, self.idx, self.prev_idx = 0, CUDA, 0, 0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return _answering(None)


class _OnTheCpu(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Tensor:
        moved = {k: torch.device("cpu") if k == "device" else v for k, v in (kwargs or {}).items()}
        return func(*args, **moved)  # type: ignore[no-any-return]
