"""From the clipped sum to a private step: who takes part, how much noise, and what it has cost.

sampler --rows--> private step --clipped sum--> noise --divide, optimizer--> next step; the accountant reads the sampler.

Needs the extra `fxperex[accounting]` (numpy, dp-accounting); nothing else of the library does.
"""

from fxperex.privacy.accountant import epsilon, noise_multiplier_for
from fxperex.privacy.engine import PrivacyEngine
from fxperex.privacy.noise import GaussianNoise
from fxperex.privacy.sampling import PoissonSampler

__all__ = ["GaussianNoise", "PoissonSampler", "PrivacyEngine", "epsilon", "noise_multiplier_for"]
