"""What turns clipped sums into a differentially private run: sampling, noise, the account, the loop."""

from fxperex.privacy.accountant import epsilon, noise_multiplier_for
from fxperex.privacy.engine import PrivacyEngine
from fxperex.privacy.noise import GaussianNoise
from fxperex.privacy.sampling import PoissonSampler

__all__ = ["GaussianNoise", "PoissonSampler", "PrivacyEngine", "epsilon", "noise_multiplier_for"]
