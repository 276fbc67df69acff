"""`fxperex calibrate`: measures this device, and stores the profile for all later plans."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from fxperex.cli._progress import progress
from fxperex.devices import calibrate, target
from fxperex.devices.calibrate import BUDGET
from fxperex.devices.kernel_classes import KERNELS
from fxperex.devices.profile_files import present, save
from fxperex.errors import ConfigError

WIDTH = max(map(len, KERNELS))
# Median of the kernels' errors: 0.15 on a machine at rest, 3 beside another busy program.
DISTURBED = 0.6
HELP = "measure this device's rates, in under two minutes, for the plans made on it"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda, default %(default)s")
    parser.add_argument("--seconds", type=float, default=BUDGET,
                        help="time to spend, default %(default)s")
    parser.add_argument("--output", type=Path,
                        help="write the profile to this file instead of the cache folder")


def run(options: argparse.Namespace) -> None:
    device = target(options.device)
    present(device)
    if not options.seconds > 0:
        raise ConfigError(f"--seconds must be above 0; got {options.seconds}")
    if options.output is not None and not options.output.parent.is_dir():
        raise ConfigError(f"the profile cannot be written to {options.output}: there is no folder "
                          f"{options.output.parent}")
    with progress("measuring") as report:
        measured = calibrate(device, report, options.seconds)
    print(f"{'kernel':<{WIDTH}} {'shapes':>6}  {'typical error':>13}")
    for kernel, error in measured.errors.items():
        print(f"{kernel:<{WIDTH}} {len(measured.samples[kernel]['float32']):>6}  "
              f"{100 * error:>12.0f}%")
    if statistics.median(measured.errors.values()) > DISTURBED:
        print("warning: measurements are inconsistent (typical error above "
              f"{DISTURBED:.0%}): another program is probably using this machine. Stop it and run "
              "calibrate again")
    if options.output is None:
        print(f"kept in {save(measured)}")
        return
    try:
        options.output.write_text(measured.to_json())
    except OSError as e:
        raise ConfigError(f"the profile cannot be written to {options.output}: {e}") from e
