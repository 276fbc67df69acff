"""The one family of errors.

Every message says what was asked, what was found (node, parameter, the user's source line, shapes)
and what to do. Whatever raises leaves the model, its `.grad` and the privacy spent as they were.
"""

from __future__ import annotations


class FxperexError(Exception):
    """Base class: `except FxperexError` catches every refusal of this library and nothing else."""


class ConfigError(FxperexError, ValueError):
    """An argument has no meaning here: a clip of zero, an unknown strategy, a glob that matches
    nothing.
    """


class ShapeError(FxperexError, ValueError):
    """A batch or a loss has another shape, dtype or device than it must have."""


class DataError(FxperexError, ValueError):
    """A batch has the right shapes and holds what the model cannot take: a label or an id out of
    range, another dtype.
    """


class CaptureError(FxperexError):
    """The model could not be turned into one graph: control flow on data, a hard-coded batch
    size.
    """


class BatchMixingError(FxperexError):
    """An operation lets one example see another, or no proof exists that it does not."""


class MutationError(FxperexError):
    """The forward pass writes into a buffer, a parameter or its input, depending on the batch."""


class CoverageError(FxperexError):
    """A trainable parameter has no per-example gradient here: no site, complex or integer,
    random.
    """


class StateError(FxperexError, RuntimeError):
    """The model is no longer the one that was transformed: parameter replaced, moved, mode
    changed.
    """


class MemoryLimitError(FxperexError, RuntimeError):
    """The step ran out of memory; the message names the plan's peak and a budget to set. Nothing
    was written.
    """


class PackageError(FxperexError):
    """A saved step cannot be used here: damaged, or made for another model, device, dtype or
    version.
    """


class RankError(FxperexError, RuntimeError):
    """Another process of the run has failed, ended, or does something else; the message says what
    stands and how to go on.
    """


class PrivacyError(FxperexError):
    """A step, a sampler or an account was used in a way the privacy claim does not cover."""


class SamplingError(PrivacyError):
    """The data do not come from a sampler whose account is known: another loader, an endless or a
    doubled data set.
    """


class LedgerError(PrivacyError):
    """A ledger, a checkpoint or a step's protocol was broken: damaged, rolled back, foreign, in
    use, out of order.
    """


class BudgetError(PrivacyError):
    """The next step would spend more than was allowed; it read no data."""


class DivergedError(PrivacyError):
    """The parameters are not finite after an update. The privacy is spent; nothing else is released
    by saying so.
    """


class BackendWarning(UserWarning):
    """The compiled backend was not available or lost; the step runs eagerly, and this says why."""


class SemanticsWarning(UserWarning):
    """A loss whose normaliser couples examples was given each example's own normaliser."""
