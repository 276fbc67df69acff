"""Opacus' interface on private steps of this library: the same names, arguments and return values.

`from fxperex.integrations.opacus import PrivacyEngine` in place of Opacus' own import; the loop
stays. Opacus itself is not needed. What has no meaning here raises and says so.
"""

from fxperex.integrations.opacus.account import Account
from fxperex.integrations.opacus.engine import PrivacyEngine
from fxperex.integrations.opacus.objects import (
    BatchMemoryManager,
    PrivateLoader,
    PrivateModule,
    PrivateOptimizer,
)
from fxperex.integrations.opacus.schedulers import (
    ExponentialGradClip,
    ExponentialNoise,
    LambdaGradClip,
    LambdaNoise,
    StepGradClip,
    StepNoise,
)
from fxperex.integrations.opacus.validator import ModuleValidator

__all__ = ["Account", "BatchMemoryManager", "ExponentialGradClip", "ExponentialNoise",
           "LambdaGradClip", "LambdaNoise", "ModuleValidator", "PrivacyEngine", "PrivateLoader",
           "PrivateModule", "PrivateOptimizer", "StepGradClip", "StepNoise"]
