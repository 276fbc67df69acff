"""From the clipped sum to a private step: who takes part, how much noise, and what it has cost.

sampler rows --private sums--> clipped sum --noise--> / divisor --optimizer--> next step; the ledger
debits every step first.

Needs the extra `fxperex[accounting]` (numpy, dp-accounting, cryptography, safetensors); nothing
else of the library does.
"""

from fxperex.privacy import extra  # noqa: F401  (first: it names the extra that is missing)
from fxperex.privacy.accountant import epsilon
from fxperex.privacy.calibration import noise_multiplier_for
from fxperex.privacy.engine import PrivacyEngine
from fxperex.privacy.guarantee import Guarantee
from fxperex.privacy.noise.gaussian import Noise
from fxperex.privacy.noise.mechanism import Mechanism
from fxperex.privacy.noise.streams import Secret
from fxperex.privacy.records.weights import load_weights
from fxperex.privacy.sampling.poisson import PoissonSampler, Sampler, TruncatedPoissonSampler
from fxperex.privacy.sampling.shuffled import ShuffledSampler
from fxperex.privacy.sampling.units import Units, per_unit

__all__ = [
    "Guarantee", "Mechanism", "Noise", "PoissonSampler", "PrivacyEngine", "Sampler", "Secret",
    "ShuffledSampler", "TruncatedPoissonSampler", "Units", "epsilon", "load_weights",
    "noise_multiplier_for", "per_unit"
]
