"""Peak memory, of the step graph and as planned, against what torch's allocator hands out during a
step, strategy by strategy.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from support import curved, under
from torch import Tensor, nn

from fxperex.planner.memory import plan_peak
from fxperex.rewrite.frame import trace_frame
from fxperex.runtime.module import PerExampleModule


def allocated(private: PerExampleModule, batch: tuple[Tensor, ...]) -> float:
    """Most bytes at once that a step takes from the allocator, with what lies there before."""
    inputs = private.step_inputs(batch)
    private.compiled(*inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as record:
        private.compiled(*inputs)
    events = sorted((e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"),
                    key=lambda e: e.start_ns())
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in inputs}
    return float(max(itertools.accumulate(e.nbytes() for e in events)) + sum(held.values()))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cells, self.head = nn.Embedding(100, 32), nn.LSTM(
            32, 64, batch_first=True), nn.Linear(64, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cells(self.embed(ids))[0][:, -1])


def _odd() -> nn.Module:
    """Channels that fill no whole blocks: a convolution over groups of them goes by patches, with
    far more scratch memory.
    """
    return nn.Sequential(nn.Conv2d(3, 25, 5, padding=2), nn.ReLU(), nn.Conv2d(25, 50, 5, padding=2),
                         nn.Flatten(), nn.Linear(50 * 256, 10))


def _wide() -> nn.Module:
    """Weights larger than activations: the copies that a convolution makes of them count."""
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
                         nn.Conv2d(64, 256, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
                         nn.Conv2d(256, 256, 3, padding=1), nn.Flatten(), nn.Linear(256 * 16, 10))


IMAGES = (torch.randn(6, 3, 16, 16),)
CASES = {
    "odd": (_odd, IMAGES), "wide": (_wide, IMAGES),
    "recurrent": (_Recurrent, (torch.randint(0, 100, (6, 9)), ))
}


@pytest.mark.parametrize("name", CASES)
def test_every_strategy_takes_what_is_said(name: str) -> None:
    make, batch = CASES[name]
    graphs, plans = {}, {}
    for strategy, private in under(make(), batch, curved, 1.0,
                                   ("auto", "crb", "multi", "vmap", "unfold", "ghost")):
        frame = trace_frame(private.captured, private.analysis, private.plan.frame_rows)
        took = allocated(private, batch)
        graphs[strategy], plans[strategy] = private.peak / took, plan_peak(
            frame, private.plan.choices).bytes / took
    assert all(abs(ratio - 1) <= 0.1 for ratio in graphs.values()), graphs
    assert all(0.8 < ratio < 1.25 for ratio in plans.values()), plans
