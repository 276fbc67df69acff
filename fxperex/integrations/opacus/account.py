"""What was spent on one data set, over all runs and settings of noise, in Opacus' terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fxperex.errors import ConfigError
from fxperex.privacy import PoissonSampler, Sampler, ShuffledSampler, accountant

# Opacus' names for accounts, and ours. PRV and PLD are two ways to compose the same losses.
METHODS = {"prv": "pld", "rdp": "rdp", "pld": "pld", "smaller": "smaller"}


@dataclass(frozen=True)
class Spent:
    """Units spent with one noise multiplier. units: steps; of shuffled batches, epochs."""

    size: int
    expected_batch: float
    poisson: bool
    noise_multiplier: float
    units: int

    @property
    def sampler(self) -> Sampler:
        """A sampler with this cost; it draws nothing."""
        if self.poisson:
            return PoissonSampler(self.size, self.expected_batch, 1, seed=0)
        return ShuffledSampler(self.size, int(self.expected_batch), 1, seed=0)


class Account:
    """The epsilon of everything that was spent. mechanism: "prv" (default of Opacus) or "rdp".

    Raises ConfigError.
    """

    def __init__(self, mechanism: str = "prv") -> None:
        if mechanism == "gdp":
            raise ConfigError('the accountant "gdp" is an approximation that can understate '
                              'epsilon; use "prv" or "rdp"')
        if mechanism not in METHODS:
            raise ConfigError(f"accountant must be one of {', '.join(METHODS)}; got {mechanism!r}")
        self._mechanism, self._entries = mechanism, list[Spent]()
        self._sources: list[Callable[[], Spent | None]] = []

    def attach(self, source: Callable[[], Spent | None]) -> None:
        """Counts what `source()` returns too: what an open engine has spent so far."""
        self._sources.append(source)

    def enter(self, spent: Spent) -> None:
        """Adds what a closed engine has spent."""
        self._entries.append(spent)

    @property
    def entries(self) -> list[Spent]:
        """Everything that was spent, closed engines and open ones."""
        open_ones = (source() for source in self._sources)
        return [*self._entries, *(spent for spent in open_ones if spent is not None)]

    @property
    def history(self) -> list[tuple[float, float, int]]:
        """(noise multiplier, sample rate, units) of every entry."""
        return [(s.noise_multiplier, s.expected_batch / s.size, s.units) for s in self.entries]

    @property
    def steps(self) -> int:
        """Units of all entries."""
        return sum(spent.units for spent in self.entries)

    def __len__(self) -> int:
        return self.steps

    def mechanism(self) -> str:
        """Returns the name of the account."""
        return self._mechanism

    def get_epsilon(self, delta: float) -> float:
        """Returns an upper bound of epsilon at `delta` of all that was spent. Raises ConfigError.
        """
        entries = self.entries
        relation = "add-or-remove" if all(s.poisson for s in entries) else "zero-out"
        runs = [(s.sampler, s.noise_multiplier, s.units) for s in entries]
        return accountant.epsilon_of_runs(runs, delta, method=METHODS[self._mechanism],
                                          relation=relation)

    def state_dict(self) -> dict[str, Any]:
        """Returns the account as plain values."""
        return {"mechanism": self._mechanism, "entries": [asdict(s) for s in self.entries]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over an account, which must hold all that this one has. Raises ConfigError."""
        if not isinstance(state, dict) or "entries" not in state:
            raise ConfigError("this is no account of fxperex. A checkpoint of Opacus has no facts "
                              "of the sampler; start its account anew and add both epsilons")
        if state["mechanism"] != self._mechanism:
            raise ConfigError(f"the account is by {state['mechanism']!r}, and this engine is by "
                              f"{self._mechanism!r}; make it with the same accountant")
        entries = [Spent(**entry) for entry in state["entries"]]
        if len(self) > 0 and entries != self.entries:
            raise ConfigError("this engine has spent steps already, which loading would forget; "
                              "load into a new PrivacyEngine, before its first step")
        self._entries = entries if not len(self) else self._entries
