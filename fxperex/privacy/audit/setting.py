"""What is audited: how many runs of how many steps, with how much noise; and each run's engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxperex.errors import ConfigError
from fxperex.privacy.audit.bounds import CONFIDENCE
from fxperex.privacy.checks import positive, probability, whole_number
from fxperex.privacy.engine import PrivacyEngine
from fxperex.runtime.module import PerExampleModule

CLIP = 1.0
# With one of these, `epochs * size / expected_batch` is a whole number of steps exactly.
RATES = (1.0, 0.5, 0.25)
APART = 1_000_003  # between the seeds of two settings


@dataclass(frozen=True)
class Setting:
    """`runs` runs with the canary and as many without, of `steps` steps each. Raises ConfigError.

    Noise of 1/2 over one step is 2-Gaussian privacy, epsilon 10.0 at delta 1e-5: so loose that
    hundreds of runs show it well. rate: probability that a row joins a step. seed: None is the
    engine as shipped.
    """

    runs: int = 2000
    steps: int = 1
    noise_multiplier: float = 0.5
    rate: float = 1.0
    delta: float = 1e-5
    confidence: float = CONFIDENCE
    seed: int | None = None

    def __post_init__(self) -> None:
        whole_number(self.runs, "runs", 10), whole_number(self.steps, "steps", 1)
        positive(self.noise_multiplier, "noise_multiplier")
        probability(self.delta, "delta"), probability(self.confidence, "confidence")
        if self.rate not in RATES:
            raise ConfigError(f"rate must be one of {', '.join(f'{r:g}' for r in RATES)}; got "
                              f"{self.rate!r}")

    @property
    def method(self) -> str:
        """The name of the bound to use. Without sampling the mechanism is a Gaussian one; with it
        no such thing may be assumed.
        """
        return "gaussian" if self.rate == 1 else "pair"

    def engine(self, private: PerExampleModule, data: tuple[Tensor, ...], number: int,
               **change: Any) -> PrivacyEngine:
        """Returns the engine of run `number`, with a key of its own. Raises FxperexError."""
        optimizer = torch.optim.SGD(private.parameters.values(), lr=1.0)
        seed = None if self.seed is None else self.seed * APART + number
        return PrivacyEngine(private, optimizer, data, expected_batch=self.rate * len(data[0]),
                             epochs=self.rate * self.steps, delta=self.delta,
                             noise_multiplier=self.noise_multiplier, seed=seed, **change)
