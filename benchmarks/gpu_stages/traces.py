"""One profile each of two private steps: which kernels take how long, Triton's and the
libraries'."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fxperex
from gpu_stages.architectures import workloads
from gpu_stages.profiled import gaps, kernels, profile
from gpu_stages.rows import Rows
from gpu_stages.setting import Setting, precision

TRACED = {"resnet18": "tf32", "gpt2": "bfloat16"}
MOST = 120  # kernels of a trace


def run(setting: Setting, part: str, rows: Rows) -> None:
    for name, dtype in TRACED.items():
        rows.run(f"{name} {dtype}", traced, name, dtype, setting)


def traced(name: str, dtype: str, setting: Setting) -> dict[str, Any]:
    torch.manual_seed(0)
    workload = workloads(setting.tiny)[name]
    with precision(dtype) as autocast:
        model = workload.make().to(setting.device)
        batch = tuple(x.to(setting.device) for x in workload.batch())
        private = fxperex.transform(model, batch, nn.CrossEntropyLoss(), autocast=autocast,
                                    backend=setting.backend)
        for _ in range(2):
            private.sums(*batch)
        events = profile(lambda: private.sums(*batch), setting)
    return gaps(events) | {"kernels": kernels(events, MOST), "ran_on": private.backend,
                           "strategies": {c.site.name: c.strategy for c in private.plan.choices}}
