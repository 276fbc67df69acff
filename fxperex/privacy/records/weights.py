"""The weights of a run's newest checkpoint, read without the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fxperex.errors import ConfigError, LedgerError
from fxperex.privacy.noise.streams import Secret
from fxperex.privacy.records import checkpoint
from fxperex.privacy.records.folder import SECRET, read_secret
from fxperex.privacy.records.registered import state_of

MODEL = "model."


def load_weights(folder: str | os.PathLike[str], registered: str | None = None) -> Any:
    """Returns {name: tensor} of the model's parameters and buffers in the newest checkpoint of
    `folder`, for `model.load_state_dict(..., strict=False)`: a tied parameter is there once.

    registered: instead, the state of the object that `PrivacyEngine.register` got under that name.
    The run may be going on. Every byte is authenticated by the folder's secret; that the folder is
    not an older copy is checked by the engine alone. Raises ConfigError or LedgerError.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"folder must be a path; got {type(folder).__name__}")
    path = Path(folder)
    if not (path / SECRET).is_file():
        raise LedgerError(f"{path} is no folder of a run: it has no file {SECRET!r}")
    sets = checkpoint.sets(path)
    if not sets:
        raise LedgerError(f"{path} has no checkpoint")
    key = Secret(secure=False, value=read_secret(path / SECRET)).key("checkpoint")
    tensors, state = checkpoint.load(sets[max(sets)], key)
    if registered is None:
        return _weights(tensors)
    held = state.get("registered", {})
    if registered not in held:
        raise LedgerError(f"the checkpoint of step {state['step']} in {path} holds no state of "
                          f"{registered!r}; it holds: {', '.join(held) or 'none'}")
    return state_of(registered, tensors, held)


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(MODEL): x for name, x in tensors.items() if name.startswith(MODEL)}
