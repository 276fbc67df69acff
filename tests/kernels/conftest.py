"""The folder `interpreted` runs in a process of its own, under Triton's interpreter: see
`test_interpreter.py`.
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
