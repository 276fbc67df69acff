"""What the ranks of a run must have alike: arguments, rows, optimizer, and what their samplers
draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from fxperex.privacy.records import training_state
from fxperex.privacy.records.facts import raw
from fxperex.privacy.run import PrivateRun


def check_alike(run: PrivateRun, asked: Mapping[str, Any]) -> None:
    """Raises ConfigError, on every rank, unless all were `asked` for the same run and hold the
    same parameters and optimizer.
    """
    ranks = run.private.ranks
    if ranks.size == 1:
        return
    with ranks.every("the engine"):
        tensors, plain = training_state.capture(run.private.model, run.optimizer)
        held = {f"the tensor {n!r}": hashlib.sha256(raw(t)).hexdigest()
                for n, t in tensors.items()}
        facts = {**asked, "the number of rows": run.rows.size,
                 "the shapes of a row": [[list(x.shape[1:]), str(x.dtype)]
                                         for x in run.rows.nothing],
                 "the optimizer": f"{type(run.optimizer).__name__} {plain}", **held}
    ranks.alike("what the engine is asked for", facts)


def check_draws(run: PrivateRun) -> None:
    """Raises ConfigError, on every rank, unless the samplers of all draw the same rows."""
    ranks = run.private.ranks
    if ranks.size == 1:
        return
    with ranks.every("the engine"):
        drawn = hashlib.sha256(raw(run.sampler.rows(0))).hexdigest()
        facts = {"the sampler": run.sampler.describe(), "the rows of step 0": drawn}
    ranks.alike("what their samplers draw, which must depend on the run's key and the step alone",
                facts)
