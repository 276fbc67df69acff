"""The device's own rates, for `fxperex/profiles`: the profile is kept as it is."""

from __future__ import annotations

import json
from typing import Any

from fxperex.devices import calibrate
from gpu_stages.rows import Rows
from gpu_stages.setting import Setting

BUDGET = 40.0  # seconds


def run(setting: Setting, part: str, rows: Rows) -> None:
    rows.run("profile", measured, setting)


def measured(setting: Setting) -> dict[str, Any]:
    profile = calibrate(setting.device, None, 0.1 if setting.tiny else BUDGET)
    return {"profile": json.loads(profile.to_json()), "errors": profile.errors}
