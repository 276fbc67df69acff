"""Differentially private training at the price of ordinary training.

model, loss, batch --capture--> Capture --analyse--> Analysis --plan--> Plan --rewrite--> step graph
--compile--> PerExampleModule --step--> .grad
"""

from fxperex.errors import (
    BackendWarning,
    BatchMixingError,
    BudgetError,
    CaptureError,
    ConfigError,
    CoverageError,
    DataError,
    DivergedError,
    FxperexError,
    LedgerError,
    MemoryLimitError,
    MutationError,
    PackageError,
    PrivacyError,
    RankError,
    SamplingError,
    SemanticsWarning,
    ShapeError,
    StateError,
)
from fxperex.fixes.fix import fix
from fxperex.runtime.loaded import load
from fxperex.runtime.module import PerExampleModule, StepResult
from fxperex.transform import transform

__all__ = [
    "BackendWarning", "BatchMixingError", "BudgetError", "CaptureError", "ConfigError",
    "CoverageError", "DataError", "DivergedError", "FxperexError", "LedgerError",
    "MemoryLimitError", "MutationError", "PackageError", "PerExampleModule", "PrivacyError",
    "RankError", "SamplingError", "SemanticsWarning", "ShapeError", "StateError", "StepResult",
    "fix", "load", "transform"
]
__version__ = "0.1.0"
