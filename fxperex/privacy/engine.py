"""The private training loop: sample, clip and sum, noise once, divide by a constant, step, account.

sampled rows --private.step--> sum in .grad --noise--> / expected_batch --optimizer.step--> parameters
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fxperex.errors import ConfigError, PrivacyError, ShapeError
from fxperex.privacy import accountant
from fxperex.privacy.checks import positive, probability
from fxperex.privacy.noise import GaussianNoise
from fxperex.privacy.sampling import PoissonSampler
from fxperex.runtime import PerExampleModule, StepResult


class PrivacyEngine:
    """Iterating it trains: one logical step of DP-SGD per item, which is that step's StepResult (not private).

    private: what `fxperex.transform` returned; optimizer: any first-order one over exactly its parameters.
    dataset: tuple of tensors, examples first, or a map-style Dataset whose items are tuples of tensors.
    expected_batch: mean number of examples per step, the constant that sums are divided by.
    noise_multiplier or epsilon: the noise in units of the sensitivity, or what the whole run may spend at `delta`.
    seed: for reproducible science only; without it every key is the operating system's.
    Raises ConfigError, ShapeError or PrivacyError, before anything is trained.
    """

    def __init__(self, private: PerExampleModule, optimizer: torch.optim.Optimizer, dataset: Any, *,
                 expected_batch: float, epochs: float, delta: float, noise_multiplier: float | None = None,
                 epsilon: float | None = None, seed: int | None = None) -> None:
        if (noise_multiplier is None) == (epsilon is None):
            raise ConfigError("give exactly one of noise_multiplier and epsilon; "
                              + ("got neither" if epsilon is None else "got both"))
        self.private, self.optimizer = private, optimizer
        self._check_optimizer()
        self._rows = _Rows(dataset)
        self.delta = probability(delta, "delta")
        size, expected = self._rows.size, positive(expected_batch, "expected_batch")
        steps = math.ceil(positive(epochs, "epochs") * size / expected)
        self.sampler = PoissonSampler(size, expected, steps, seed)
        self._sensitivity = positive(private.clip.sensitivity, "clip.sensitivity")
        self.noise_multiplier = (positive(noise_multiplier, "noise_multiplier") if epsilon is None
                                 else accountant.noise_multiplier_for(epsilon, delta, self.sampler))
        self._noise = GaussianNoise(self.noise_multiplier, seed)
        self._draws = iter(self.sampler)
        self.steps_done = 0

    def __len__(self) -> int:
        """Returns the number of steps of the whole run."""
        return self.sampler.steps

    def __iter__(self) -> Iterator[StepResult]:
        """Yields the StepResult of each remaining step. A later loop goes on where an earlier one ended."""
        while self._left():
            yield self.step()

    def step(self) -> StepResult:
        """Returns the StepResult of one logical step, taken. Raises PrivacyError past the end of the run.

        If anything raises, the sum in `.grad` is cleared: it is not private.
        """
        if not self._left():
            raise PrivacyError(f"all {self.sampler.steps} steps that the noise was planned for are taken; "
                               "more would spend more than asked. Make an engine with more epochs")
        self._check_optimizer()
        if self.private.clip.sensitivity != self._sensitivity:
            raise PrivacyError(f"clip.sensitivity changed from {self._sensitivity} to "
                               f"{self.private.clip.sensitivity} since the engine was made")
        try:
            return self._step()
        except BaseException:
            self._clear()
            raise

    def epsilon(self, method: str = "pld") -> float:
        """Returns the epsilon spent so far, at `delta`, by account "pld" or "rdp". Raises ConfigError."""
        return accountant.epsilon(self.sampler, self.noise_multiplier, self.delta, steps=self.steps_done, method=method)

    def _step(self) -> StepResult:
        self._clear()
        device = next(iter(self.private.parameters.values())).device
        result = self.private.step(*(x.to(device) for x in self._rows.take(next(self._draws))))
        # Counted before anything is released: a failure from here on is paid for, and its noise never used again.
        number, self.steps_done = self.steps_done, self.steps_done + 1
        sums = [p.grad for p in self.private.parameters.values() if p.grad is not None]
        assert len(sums) == len(self.private.parameters)
        noised = self._noise.release(sums, self._sensitivity, number, self.sampler.expected_batch)
        for p, value in zip(self.private.parameters.values(), noised, strict=True):
            p.grad = value
        self.optimizer.step()
        return result

    def _left(self) -> bool:
        # A step that failed has used up its batch: the sampler, not `steps_done`, knows what is left.
        return self.sampler.taken < self.sampler.steps

    def _clear(self) -> None:
        for p in self.private.parameters.values():
            p.grad = None

    def _check_optimizer(self) -> None:
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise PrivacyError("LBFGS evaluates the loss several times per step, unseen by the account; "
                               "use SGD, Adam or another first-order optimizer")
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        names = {id(p): n for n, p in self.private.parameters.items()}
        missing = [n for i, n in names.items() if i not in held]
        extra = len(held - names.keys())
        if missing or extra:
            raise PrivacyError("the optimizer must hold exactly the parameters of the private step; "
                               f"it lacks {missing or 'none'} and holds {extra} others. "
                               "Make it over private.parameters.values()")


class _Rows:
    """Rows of a data set by number. Raises ShapeError where there are none or they are not tensors."""

    def __init__(self, dataset: Any) -> None:
        self._tensors = dataset if isinstance(dataset, tuple) else None
        self._dataset = dataset
        if self._tensors is not None:
            if not dataset or not all(isinstance(x, Tensor) and x.dim() for x in dataset):
                raise ShapeError("dataset must be a tuple of tensors with the examples first, or a map-style Dataset")
            if len({len(x) for x in dataset}) != 1:
                raise ShapeError(f"dataset tensors have different numbers of examples: {[len(x) for x in dataset]}")
        elif not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ShapeError(f"dataset must have __len__ and __getitem__; got {type(dataset).__name__}")
        self.size = len(dataset[0]) if self._tensors is not None else len(dataset)
        if self.size == 0:
            raise ShapeError("dataset has no examples")

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Returns the batch of `rows`, a tuple of tensors `[len(rows), ...]`."""
        if self._tensors is not None:
            return tuple(x[rows.to(x.device)] for x in self._tensors)
        # An empty batch still needs shapes and dtypes, and nothing else, of some example.
        batch = default_collate([self._dataset[i] for i in rows.tolist() or [0]])
        if not isinstance(batch, tuple | list) or not all(isinstance(x, Tensor) for x in batch):
            raise ShapeError(f"an item of the dataset must be a tuple of tensors; got {type(self._dataset[0]).__name__}")
        return tuple(x[:len(rows)] for x in batch)
