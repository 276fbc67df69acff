"""The whole first look at a GPU, in one command of 8 to 10 minutes: right first, then how fast.

    python benchmarks/gpu_run.py --out DIR [--only steps,table] [--device cpu --tiny]

Needs torch and this library; what else it could use (opacus, torchvision, transformers,
dp-accounting) is looked for, and noted where it is not there. Each stage runs in processes of its
own under a time limit: a hang or a broken device ends one part and not the run. `DIR` has at most
eight JSON files, written as the rows are done, and their summary is printed last. Exit code: 0
where every stage ran to its end, 1 where a value is wrong, 2 where something failed or had no time
left.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_stages import STAGES, seconds
from gpu_stages.processes import StageRun, write
from gpu_stages.report import code, summary, table
from gpu_stages.rows import Rows

SECONDS = 580.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_run"), help="folder for the JSON files"
    )
    parser.add_argument("--only", help=f"stages, separated by commas, of {', '.join(STAGES)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes and few rounds: a rehearsal"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for the whole run, default %(default)s"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "fxperex_gpu_run",
        help="compiled code and rows as they come, default %(default)s; kept for the next run",
    )
    # A process of one stage is this script again.
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def names(only: str | None) -> list[str]:
    """Returns the stages to run, in their order. Raises SystemExit for an unknown one."""
    asked = list(STAGES) if only is None else only.split(",")
    unknown = [name for name in asked if name not in STAGES]
    if unknown:
        raise SystemExit(f"unknown stage {unknown[0]!r}; there are: {', '.join(STAGES)}")
    return [name for name in STAGES if name in asked]


def caches(folder: Path) -> None:
    """Compilers keep what they made in `folder`, where a run again finds it."""
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton"),
                           ("FXPEREX_CACHE", "fxperex")):
        os.environ.setdefault(variable, str(folder.resolve() / name))


def main() -> int:
    asked = options()
    caches(asked.cache)
    if asked.stage:
        from gpu_stages.setting import Setting  # with torch, which only a stage's process needs

        setting = Setting(asked.device, asked.tiny, asked.cache)
        STAGES[asked.stage].run(setting, asked.part, Rows(asked.rows, setting.facts()))
        return 0
    asked.out.mkdir(parents=True, exist_ok=True)
    end, stages, chosen = time.monotonic() + asked.seconds, dict[str, Any](), names(asked.only)
    for name in chosen:
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        limit = seconds(name, chosen, end - time.monotonic(), asked.tiny)
        stages[name] = StageRun(name, asked, limit).run()
        if name != "machine":
            write(asked.out / f"{name}.json", stages[name])
        write(asked.out / "summary.json", summary(stages))
    print(table(stages))
    return code(stages)


if __name__ == "__main__":
    sys.exit(main())
