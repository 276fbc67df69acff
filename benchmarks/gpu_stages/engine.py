"""The whole logical step: `PrivacyEngine` around ResNet-18, beside the bare private step, with and
without a folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxperex
from gpu_stages.architectures import workloads
from gpu_stages.clock import fastest
from gpu_stages.profiled import gaps, kernels, profile
from gpu_stages.rows import AbsentError, Rows
from gpu_stages.setting import Setting, precision

NEEDS = ("numpy", "scipy", "dp_accounting", "cryptography", "safetensors")


def run(setting: Setting, part: str, rows: Rows) -> None:
    with precision("tf32"):
        training = Training(setting)
        rows.run("bare step", training.bare)
        rows.run("without folder", training.steps, None)
        rows.run("with folder", training.steps, setting.cache / "engine")
        rows.run("profile", training.profiled)


class Training:
    """The workload, its step made once, and engines around it."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        workload = workloads(setting.tiny)["resnet18"]
        self.setting, self.count = setting, 2 if setting.tiny else 20
        self.model, self.batch = workload.make().to(setting.device), workload.batch()
        self.placed = tuple(x.to(setting.device) for x in self.batch)
        self.private = fxperex.transform(self.model, self.placed, nn.CrossEntropyLoss(),
                                         backend=setting.backend)

    def bare(self) -> dict[str, Any]:
        return {"seconds_a_step": fastest(lambda: self.private.sums(*self.placed), self.setting)}

    def engine(self, folder: Path | None) -> Any:
        for name in NEEDS:
            try:
                __import__(name)
            except ImportError as error:
                raise AbsentError(name) from error
        from fxperex.privacy import PrivacyEngine

        rows = len(self.batch[0])
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        return PrivacyEngine(
            self.private,
            optimizer,
            tuple(torch.cat([x, x]) for x in self.batch),
            expected_batch=rows,
            epochs=self.count + 4,
            delta=1e-5,
            noise_multiplier=1.0,
            folder=folder,
        )

    def steps(self, folder: Path | None) -> dict[str, Any]:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with self.engine(folder) as engine:
            engine.step()
            self.setting.wait()
            start = time.perf_counter()
            for _ in range(self.count):
                engine.step()
            self.setting.wait()
            return {
                "steps": self.count,
                "seconds_a_step": (time.perf_counter() - start) / self.count,
            }

    def profiled(self) -> dict[str, Any]:
        """Launches, waits and idle share of three steps without a folder."""
        with self.engine(None) as engine:
            engine.step()
            events = profile(
                lambda: [engine.step() for _ in range(1 if self.setting.tiny else 3)], self.setting
            )
        return gaps(events) | {"kernels": kernels(events, 30)}
