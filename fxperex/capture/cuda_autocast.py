"""Capture under the autocast of a GPU that is not here.

A step is planned on the meta device, which has no autocast, and each kind of device has rules of
its own. So while `torch.export` looks, a copy of the model and the batch stand as fake tensors on
that GPU; what is exported is brought back, and all later stages run where the batch is.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class Elsewhere:
    """Stand-ins on `device`, which need not exist, for what is on `here`."""

    def __init__(self, device: torch.device, here: torch.device) -> None:
        self.device, self.here = device, here
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def model(self, model: nn.Module) -> nn.Module:
        """Returns a copy whose parameters and buffers stand on the device; what was tied stays
        so.
        """
        standing: dict[int, tuple[Tensor, Tensor]] = {
        }  # with what it stands for, whose number must not become another's
        copied = copy.deepcopy(model)
        for module in copied.modules():
            for held in (module._parameters, module._buffers):
                for name, x in held.items():
                    if x is None:
                        continue
                    if id(x) not in standing:
                        standing[id(x)] = x, self._like(x)
                    held[name] = standing[id(x)][1]  # type: ignore[assignment]
        return copied

    def _like(self, x: Tensor) -> Tensor:
        stand_in = self.tensor(x)
        return nn.Parameter(stand_in, x.requires_grad) if isinstance(x, nn.Parameter) else stand_in

    def tensor(self, x: Tensor) -> Tensor:
        with self._fakes:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=self.device)

    @contextlib.contextmanager
    def casting(self) -> Iterator[None]:
        """Within it tensors are made on the device; `torch.autocast` is on, which turns itself off
        where torch finds no GPU.
        """
        if self.device.type != "cuda" or torch.cuda.is_available():
            with self.device:
                yield
            return
        amp: Any = torch.cuda.amp.common
        cuda: Any = torch.cuda
        originals = amp.amp_definitely_not_available, cuda.is_bf16_supported
        amp.amp_definitely_not_available, cuda.is_bf16_supported = lambda: False, lambda *_: True
        try:
            with self.device:
                yield
        finally:
            amp.amp_definitely_not_available, cuda.is_bf16_supported = originals

    def back(self, exported: Any) -> Any:
        """Returns `exported`, in place, with every device that it names and every constant where
        the batch is.
        """
        def home(value: Any) -> Any:
            away = isinstance(value, torch.device) and value.type == self.device.type
            return self.here if away else value

        for node in exported.graph_module.graph.nodes:
            node.args = fx.node.map_aggregate(node.args, home)
            node.kwargs = fx.node.map_aggregate(node.kwargs, home)
        for name, x in exported.constants.items():
            if isinstance(x, FakeTensor):
                exported.constants[name] = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype,
                                                               device=self.here)
        return exported
