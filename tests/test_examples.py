"""Every example runs to its end, says what it promises to say, and is short and listed.

Examples run in two processes of their own, one after the other: two register things that other
tests must not meet, and one forks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# In the order in which they share a process: what forks comes before any thread, what registers a
# strategy comes after all plans. Beside each, words of what it prints.
SAYS = {
    "training": {
        "resume_after_a_kill": r"starts at step 5 of 20, 7 debited\nfinished: 20 steps taken, 20 d",
        "train_privately": r"accuracy [6-9]\d\.\d% on held-out digits, epsilon (2\.9|3\.0)",
        "several_processes": r"process 0 of 1 ran \d+ rows in 12 steps\nepsilon \d\.\d\d, param",
        "protect_users": r"epsilon \d\.\d\d for a whole user",
    },
    "graphs": {
        "read_a_plan": r"the same by the plan from JSON: True",
        "hugging_face": r"one site of 2 uses",
        "lora": r"448 of 15968 parameters are trained; 4 sites, 12 frozen",
        "own_operation": r"without a rule: example.squash.+no batch rule.*\nwith the rule: er",
        "own_strategy": r"0\.weight +linear +linear +16,1,1,32,64 +einsum",
    },
}
RUNNER = """
import runpy, sys, torch
torch.set_num_threads(1)
for name in sys.argv[1:]:
    print(f"=== {name}", flush=True)
    runpy.run_path(f"examples/{name}.py", run_name="__main__")
"""


@pytest.mark.parametrize("group", SAYS)
def test_examples_run_and_say_what_they_promise(group: str) -> None:
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ran = subprocess.run([sys.executable, "-c", RUNNER, *SAYS[group]], cwd=ROOT, text=True,
                         capture_output=True, env=os.environ | {"PYTHONPATH": paths})
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    printed = dict(re.findall(r"^=== (\w+)\n((?:(?!^===).*\n)*)", ran.stdout, re.MULTILINE))
    for name, words in SAYS[group].items():
        assert re.search(words, printed[name]), printed[name][-2000:]


def test_an_example_on_two_processes_is_that_on_one() -> None:
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    printed = []
    for start in ((), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")):
        ran = subprocess.run([sys.executable, *start, "examples/several_processes.py"], cwd=ROOT,
                             text=True, capture_output=True,
                             env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
        printed.append(ran.stdout)
    alone, ours = printed
    rows = [sum(map(int, re.findall(r"ran (\d+) rows in 12 steps", text))) for text in printed]
    assert rows[0] == rows[1] and "process 1 of 2" in ours
    (expected, ), (found, ) = (re.findall(r"epsilon .*", text) for text in (alone, ours))
    assert found == expected


def test_every_example_is_run_and_listed() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = re.findall(r"^\| \[(\w+)\.py\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(listed) == sorted(n for group in SAYS.values() for n in group)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_opens_with_what_it_shows(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith('"""') and len(lines) <= 60
