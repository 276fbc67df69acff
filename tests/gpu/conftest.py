"""The folder `pretended` runs in a process of its own, which believes in a GPU: see
`test_dry_gpu.py`."""

from __future__ import annotations

import os

collect_ignore = [] if "FXPEREX_PRETENDED_SM" in os.environ else ["pretended"]
