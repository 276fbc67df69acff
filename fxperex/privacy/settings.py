"""From the arguments of an engine to its sampler and mechanism. Every number that the user leaves
out is computed here, once.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from fxperex.capture.distributed import world_size
from fxperex.errors import ConfigError
from fxperex.privacy import accountant, calibration
from fxperex.privacy.checks import one_of, positive, probability
from fxperex.privacy.noise.mechanism import Mechanism
from fxperex.privacy.noise.streams import Secret
from fxperex.privacy.sampling.poisson import PoissonSampler, Sampler
from fxperex.privacy.sampling.rows import Rows
from fxperex.privacy.sampling.shuffled import ShuffledSampler
from fxperex.runtime.loaded import LoadedStep
from fxperex.runtime.module import PerExampleModule

SAMPLINGS = ("poisson", "shuffled")


@dataclass(frozen=True)
class Settings:
    """What was asked of a run. Raises ConfigError if that has no meaning."""

    expected_batch: float
    epochs: float
    delta: float
    noise_multiplier: float | None
    epsilon: float | None
    budget: float | None
    relation: str
    sampling: str | Sampler
    noise: str
    account: str

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ConfigError("give exactly one of noise_multiplier and epsilon; "
                              + ("got neither" if self.epsilon is None else "got both"))
        if self.epsilon is not None and self.budget is not None:
            raise ConfigError("epsilon is the budget of the whole run already; give budget with "
                              "noise_multiplier")
        for name in ("expected_batch", "epochs"):
            positive(getattr(self, name), name)
        for name in ("noise_multiplier", "epsilon", "budget"):
            if getattr(self, name) is not None:
                positive(getattr(self, name), name)
        probability(self.delta, "delta")
        one_of(self.relation, "relation", accountant.RELATIONS)
        one_of(self.account, "account", accountant.METHODS)

    @property
    def described(self) -> dict[str, object]:
        """The settings by name; a sampler of the user's own by its kind."""
        kind = self.sampling if isinstance(self.sampling, str) else type(self.sampling).__name__
        return vars(self) | {"sampling": kind}


def check_private(private: object) -> None:
    """Raises ConfigError unless `private` is a step whose guarantee can be stated."""
    if not isinstance(private, PerExampleModule | LoadedStep):
        raise ConfigError("the engine's first argument must be what fxperex.transform returned; "
                          f"got {type(private).__name__}")
    if isinstance(private, LoadedStep) or not private.proved:
        raise ConfigError("a loaded step holds no proof that examples do not mix, and its bound is "
                          "the file's word: no guarantee could be stated for what the engine "
                          "spends. Make the step here with fxperex.transform")
    if private.shards is not None:
        raise ConfigError("the engine serves several processes that hold whole parameters, and "
                          "these are sharded. Transform the model without fully_shard")
    if private.ranks.size == 1 and world_size() > 1:
        raise ConfigError(f"this step is for one process, and torch.distributed has "
                          f"{world_size()}: each would add noise and draw rows of its own, and "
                          "no account would hold. Transform after init_process_group, with mesh= "
                          "of all processes that train")


def check_data(private: PerExampleModule, rows: Rows) -> None:
    """Raises ShapeError, before any debit, if the step does not take the rows of the data set."""
    device = next(iter(private.parameters.values())).device
    private.check(*(x.to(device) for x in rows.nothing))


def check_files(folder: object, secure: object, counter: object, same_data: object) -> None:
    """Raises ConfigError unless these are a path, a choice of generator, a counter and a bool."""
    if not isinstance(same_data, bool):
        raise ConfigError(f"same_data must be True or False; got {same_data!r}")
    if same_data and folder is None:
        raise ConfigError("same_data binds a folder to its data; give folder too")
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"folder must be a path; got {type(folder).__name__}")
    if secure is not None and not isinstance(secure, bool):
        raise ConfigError(f"secure must be True, False or None (the default); got {secure!r}")
    if counter is None:
        return
    if folder is None:
        raise ConfigError("counter counts the records of a folder's ledger; give folder too")
    if not all(callable(getattr(counter, name, None)) for name in ("read", "write")):
        raise ConfigError("counter must have read() and write(value), see "
                          f"fxperex.privacy.records.ledger; got {type(counter).__name__}")


def make_sampler(settings: Settings, size: int, secret: Secret) -> Sampler:
    """Returns the sampler of the run. Raises ConfigError."""
    expected, sampling = settings.expected_batch, settings.sampling
    if isinstance(sampling, Sampler):
        if sampling.size != size or sampling.expected_batch != expected:
            raise ConfigError(f"the sampler draws {sampling.expected_batch:g} of {sampling.size} "
                              f"examples; the engine was asked for {expected:g} of {size}")
        sampling.rows(0)  # refused now, and not after a debit
        return sampling
    steps = math.ceil(settings.epochs * size / expected)
    if one_of(sampling, "sampling", SAMPLINGS) == "poisson":
        return PoissonSampler(size, expected, steps, secret=secret)
    return ShuffledSampler(size, expected, steps, secret=secret)  # type: ignore[arg-type]


def make_mechanism(settings: Settings, private: PerExampleModule, sampler: Sampler) -> Mechanism:
    """Returns the mechanism of the run; its noise is computed if (epsilon, delta) was asked for.
    Raises ConfigError.
    """
    accountant.check_relation(sampler, settings.relation)
    multiplier = settings.noise_multiplier
    if multiplier is None:
        assert settings.epsilon is not None
        multiplier = calibration.noise_multiplier_for(
            settings.epsilon, settings.delta, sampler, method=settings.account,
            relation=settings.relation)
    dimension = sum(p.numel() for p in private.parameters.values())
    return Mechanism(private.clip, multiplier, settings.relation, sampler.expected_batch, dimension,
                     settings.noise)


def most_units(settings: Settings, mechanism: Mechanism, sampler: Sampler) -> int | None:
    """Returns how many of the sampler's units may be spent; None without a budget. Raises
    ConfigError.
    """
    planned = sampler.units(sampler.steps)
    if settings.budget is None:
        return None if settings.epsilon is None else planned
    return calibration.affordable(
        sampler, mechanism.noise_multiplier, settings.budget, settings.delta, most=planned,
        method=settings.account, relation=settings.relation)
