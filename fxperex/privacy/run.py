"""What the parts of a private run need of the engine that drives it.

They import this protocol, and the engine imports them: so no two files import each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from fxperex.privacy.noise.mechanism import Mechanism
from fxperex.privacy.noise.streams import Secret
from fxperex.privacy.records.registered import Registered
from fxperex.privacy.records.spending import Books
from fxperex.privacy.sampling.poisson import Sampler
from fxperex.privacy.sampling.rows import Rows
from fxperex.runtime.module import PerExampleModule


class PrivateRun(Protocol):
    """A run as far as it has come. `PrivacyEngine` is one."""

    private: PerExampleModule
    rows: Rows
    sampler: Sampler
    mechanism: Mechanism
    books: Books
    randomness: Secret
    folder: Path | None
    delta: float
    account: str
    steps_done: int
    generation: int
    registered: Registered

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def noise_multiplier(self) -> float: ...
