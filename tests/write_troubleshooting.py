"""`python -m tests.write_troubleshooting` writes the page of errors from the classes."""

from __future__ import annotations

import inspect
from pathlib import Path

import fxperex.errors

PAGE = Path(fxperex.errors.__file__).parent / "docs" / "troubleshooting.md"
HEAD = """# Errors and ways out

Every refusal is an `FxperexError`; its message says what was asked, what was found (the node, the
parameter, your source line, shapes) and what to do. Nothing was written when one is raised. This
page is written from the classes by `python -m tests.write_troubleshooting`.

| class | it means | it is also | what to try |
|---|---|---|---|
"""
TRY = {
    "FxperexError": "`except FxperexError` catches every class below",
    "ConfigError": "read the argument that the message names",
    "ShapeError": "give the shapes, dtypes and device that `transform` saw; any number of rows",
    "DataError": "look at labels and ids: one of them is out of range",
    "CaptureError": "rewrite the line that the message names, as it says",
    "BatchMixingError": "`model, changes = fxperex.fix(model)`; else write a batch rule",
    "MutationError": "evaluation mode for that module, or a norm without running statistics",
    "CoverageError": "freeze the parameter, or use it by an operation that has a gradient",
    "StateError": "call `transform` again after the model was changed",
    "MemoryLimitError": "`memory=` with the budget that the message names",
    "PackageError": "save the step again with these versions and this model",
    "PrivacyError": "follow the message: what was asked for has no account",
    "SamplingError": "hand the data set itself to `PrivacyEngine`, not a loader",
    "LedgerError": "use another folder, or the checkpoint that belongs to it",
    "RankError": "start every rank with the same model, settings and code",
    "BudgetError": "make an engine with more epochs or a larger epsilon",
    "DivergedError": "lower the learning rate",
    "BackendWarning": "nothing: the step runs eagerly; the message says why",
    "SemanticsWarning": "know that each example has its own normaliser, or change the loss",
}


def text() -> str:
    """Returns the page. Raises KeyError for a class without advice."""
    classes = [c for c in vars(fxperex.errors).values()
               if inspect.isclass(c) and issubclass(c, Exception)]
    rows = [f"| `{c.__name__}` | {' '.join((c.__doc__ or '').split())} | "
            f"{', '.join(f'`{base.__name__}`' for base in c.__bases__)} | {TRY[c.__name__]} |"
            for c in classes if c.__module__ == fxperex.errors.__name__]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
