"""What a folder holds is whole, ours and the newest, or it is refused by name of what is wrong."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fxperex.clipping import Adaptive
from fxperex.errors import LedgerError
from fxperex.privacy import PrivacyEngine
from fxperex.privacy.records import facts
from fxperex.privacy.records.ledger import Ledger

Make = Callable[..., PrivacyEngine]
LEDGER, SECRET = "ledger.jsonl", "secret"


@pytest.fixture
def folder(engine: Make, tmp_path: Path) -> Path:
    """A run of 4 steps, closed after 3, with its checkpoint."""
    made = engine(folder=tmp_path, checkpoint_every=3)
    for _ in range(3):
        made.step()
    made.close()
    return tmp_path


def _refused(engine: Make, folder: Path, words: str, **change: Any) -> None:
    with pytest.raises(LedgerError, match=words):
        engine(folder=folder, checkpoint_every=3, **change)


def _set(folder: Path) -> Path:
    return max(folder.glob("checkpoint-*"))


FILES = (LEDGER, SECRET, "tensors.safetensors", "state.json", "mac")


@pytest.mark.parametrize("seed", range(15))
def test_a_flipped_bit_is_seen(seed: int, folder: Path, engine: Make) -> None:
    draw, path = random.Random(seed), _file(folder, FILES[seed % len(FILES)])
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data) - 1)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    _refused(engine, folder, "damaged|another run")
    assert path.read_bytes() == data, "what is refused is left as it is"


@pytest.mark.parametrize("seed", range(15))
def test_a_truncated_file_is_seen(seed: int, folder: Path, engine: Make) -> None:
    draw, path = random.Random(seed), _file(folder, FILES[seed % len(FILES)])
    data = path.read_bytes()
    # A last line cut short is what a crash leaves, and says nothing (see below): the ledger is cut
    # before it.
    left = data[:draw.randrange(len(data) if path.name != LEDGER else data[:-1].rfind(b"\n"))]
    path.write_bytes(left)
    _refused(engine, folder, "damaged|another run|rolled back")
    assert path.read_bytes() == left, "what is refused is left as it is"


@pytest.mark.parametrize("keep", [0, 1, 100])
def test_a_ledger_cut_to_less_than_a_line_is_no_new_ledger(keep: int, folder: Path,
                                                           engine: Make) -> None:
    left = (folder / LEDGER).read_bytes()[:keep]
    (folder / LEDGER).write_bytes(left)
    _refused(engine, folder, "rolled back")
    assert (folder / LEDGER).read_bytes() == left


def _file(folder: Path, name: str) -> Path:
    return folder / name if name in (LEDGER, SECRET) else _set(folder) / name


@pytest.mark.parametrize("end", [b"", b"\x0b", b"\0"])
def test_a_last_line_whole_but_for_its_newline_counts(end: bytes, engine: Make,
                                                      tmp_path: Path) -> None:
    made = engine(folder=tmp_path)
    made.books.begin(0, 0)
    made.close()
    whole = (tmp_path / LEDGER).read_bytes()
    (tmp_path / LEDGER).write_bytes(whole[:-1] + end)
    for _ in range(2):
        again = engine(folder=tmp_path)
        assert again.books.units == 1 and (tmp_path / LEDGER).read_bytes().startswith(whole)
        again.close()


def test_nested_nonsense_in_the_ledger_is_damage(folder: Path, engine: Make) -> None:
    (folder / LEDGER).write_bytes((folder / LEDGER).read_bytes() + b"[" * 200_000 + b"\n")
    _refused(engine, folder, "damaged or was tampered with at line")


@pytest.mark.parametrize("name", ["checkpoint-best", "checkpoint-000000012.bak", "checkpoint-"])
def test_foreign_names_are_said_and_kept(name: str, folder: Path, engine: Make) -> None:
    shutil.copytree(_set(folder), folder / name)
    _refused(engine, folder, f"holds {name}, which this library did not write")
    assert (folder / name).is_dir()


def test_foreign_names_do_not_stop_a_run(engine: Make, tmp_path: Path) -> None:
    made = engine(folder=tmp_path, checkpoint_every=1)
    (tmp_path / "checkpoint-best").mkdir()
    assert len(list(made)) == 4 and (tmp_path / "checkpoint-best").is_dir()


def test_a_set_under_another_number_is_seen(engine: Make, tmp_path: Path) -> None:
    made = engine(folder=tmp_path, checkpoint_every=1)
    made.step()
    old = shutil.copytree(_set(tmp_path), tmp_path.parent / f"{tmp_path.name}-old")
    made.step()
    made.close()
    shutil.copytree(old, tmp_path / "checkpoint-000000999")
    _refused(engine, tmp_path, "was renamed: it was written as number")


def test_a_set_of_another_run_is_foreign(folder: Path, engine: Make) -> None:
    other = folder.parent / f"{folder.name}-other"
    made = engine(folder=other, seed=5, checkpoint_every=3)
    list(made)
    made.close()
    shutil.copytree(_set(other), folder / "checkpoint-000000999")
    _refused(engine, folder, "belongs to another run")


def test_nothing_is_unpickled(folder: Path, engine: Make) -> None:
    with mock.patch.object(pickle, "Unpickler", side_effect=AssertionError), \
            mock.patch.object(torch, "load", side_effect=AssertionError), \
            mock.patch.object(pickle, "loads", side_effect=AssertionError):
        assert engine(folder=folder, checkpoint_every=3).steps_done == 3


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "mac"])
def test_a_missing_file_is_named(name: str, folder: Path, engine: Make) -> None:
    (_set(folder) / name).unlink()
    _refused(engine, folder, f"{name} is missing")


def test_a_missing_secret_is_named(folder: Path, engine: Make) -> None:
    (folder / SECRET).unlink()
    _refused(engine, folder, "secret is missing")


def test_another_secret_is_another_run(folder: Path, engine: Make) -> None:
    (folder / SECRET).write_bytes(bytes(32))
    _refused(engine, folder, "another run")


def test_lines_cannot_be_dropped_moved_or_added(folder: Path, engine: Make) -> None:
    lines = (folder / LEDGER).read_text().splitlines(keepends=True)
    for forged in (lines[:4] + lines[5:], [lines[1], lines[0],
                                           *lines[2:]], [*lines,
                                                         lines[-1]], [*lines,
                                                                      "{}\n"], [*lines, "[]\n"]):
        (folder / LEDGER).write_text("".join(forged))
        _refused(engine, folder, "damaged or was tampered with at line")


def test_a_ledger_older_than_its_checkpoint_is_rolled_back(folder: Path, engine: Make) -> None:
    lines = (folder / LEDGER).read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "commit")
    (folder / LEDGER).write_text("".join(lines[:last]))
    _refused(engine, folder, "rolled back")


def test_an_older_checkpoint_is_rolled_back(engine: Make, tmp_path: Path) -> None:
    made = engine(folder=tmp_path / "run", checkpoint_every=1)
    made.step()
    shutil.copytree(_set(tmp_path / "run"), tmp_path / "old" / _set(tmp_path / "run").name)
    made.step()
    made.close()
    shutil.rmtree(_set(tmp_path / "run"))
    _refused(engine, tmp_path / "run", "rolled back or removed")
    shutil.copytree(tmp_path / "old", tmp_path / "run", dirs_exist_ok=True)
    _refused(engine, tmp_path / "run", "rolled back or removed")


def test_a_whole_older_folder_is_seen_by_a_counter_alone(folder: Path, engine: Make,
                                                         tmp_path: Path) -> None:
    class Elsewhere:
        value = 0

        def read(self) -> int:
            return self.value

        def write(self, value: int) -> None:
            self.value = value

    counter = Elsewhere()
    old = tmp_path.parent / f"{tmp_path.name}-old"
    engine(folder=folder, checkpoint_every=3, counter=counter).close()
    shutil.copytree(folder, old)
    made = engine(folder=folder, checkpoint_every=3, counter=counter)
    made.step()
    made.close()
    engine(folder=shutil.copytree(old, tmp_path.parent / f"{tmp_path.name}-free"),
           checkpoint_every=3).close()
    _refused(engine, old, "rolled back", counter=counter)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"noise_multiplier": 1.0}, "mechanism"), ({"clip": 0.25}, "mechanism"),
     ({"expected_batch": 5}, "mechanism"), ({"relation": "replace"}, "mechanism"),
     ({"noise": "discrete"}, "mechanism"), ({"epochs": 2}, "sampler"),
     ({"sampling": "shuffled", "relation": "zero-out"}, "mechanism"), ({"seed": 5}, "randomness"),
     ({"delta": 1e-4}, "target: delta is 0.001, this engine's 0.0001"),
     ({"budget": 5.0}, "target: budget is None, this engine's 5.0"),
     ({"noise_multiplier": 1.0, "delta": 1e-4},
      r"mechanism: noise multiplier is 1.3, this engine's 1.0; its mechanism: standard .*target")])
def test_another_run_is_named(change: dict[str, Any], words: str, folder: Path,
                              engine: Make) -> None:
    _refused(engine, folder, f"belongs to another run: its {words}", **change)


def test_another_optimizer_or_model_is_named(folder: Path, engine: Make,
                                             private: Callable[..., Any]) -> None:
    step = private()
    _refused(engine, folder, "its optimizer is 'SGD', this engine's 'Adam'", step=step,
             optimizer=torch.optim.Adam(step.parameters.values()))
    step = private(model=torch.nn.Sequential(torch.nn.Linear(6, 3)))
    _refused(engine, folder, "its model is", step=step)


def test_a_pickle_is_not_run(folder: Path, engine: Make, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "owned",)

    for name in ("tensors.safetensors", "state.json", "mac"):
        (_set(folder) / name).write_bytes(pickle.dumps(Payload()))
        _refused(engine, folder, "damaged")
    assert not (tmp_path / "owned").exists()


def test_a_torn_line_was_never_begun(folder: Path, engine: Make) -> None:
    whole = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(whole + b'{"n": 99, "kind": "begin"')
    made = engine(folder=folder, checkpoint_every=3)
    assert made.books.units == 3 and (folder / LEDGER).read_bytes().startswith(whole)
    made.step()
    made.close()
    assert engine(folder=folder, checkpoint_every=3).books.units == 4


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_optimizers_come_back_as_they_were(kind: str, engine: Make, private: Callable[..., Any],
                                           tmp_path: Path) -> None:
    def run(folder: Path, stops: int) -> tuple[torch.Tensor, dict[str, Any]]:
        for _ in range(stops + 1):
            step = private()
            how = {"momentum": 0.9} if kind == "SGD" else {"betas": (0.8, 0.9)}
            made = engine(
                step, optimizer=getattr(torch.optim, kind)(step.parameters.values(), lr=0.1, **how),
                folder=folder, checkpoint_every=1)
            for _ in range(len(made) // (stops + 1)):
                made.step()
            made.close()
        return step.parameters["weight"].detach().clone(), made._gate.optimizer.state_dict()

    (smooth, state), (broken, again) = run(tmp_path / "a", 0), run(tmp_path / "b", 3)
    assert torch.equal(smooth, broken)
    assert [{k: v for k, v in g.items()} for g in again["param_groups"]] == state["param_groups"]


def test_the_adaptive_bound_comes_back(engine: Make, tmp_path: Path) -> None:
    made = engine(clip=Adaptive(2.0, count_noise=2.0), folder=tmp_path)
    list(made)
    bound = made.mechanism.clip.bound  # type: ignore[attr-defined]
    made.close()
    again = engine(clip=Adaptive(2.0, count_noise=2.0), folder=tmp_path)
    assert again.mechanism.clip.bound == bound != 2.0  # type: ignore[attr-defined]


def test_dropout_is_replayed(engine: Make, private: Callable[..., Any], tmp_path: Path) -> None:
    def run(folder: Path, stops: int) -> list[float]:
        for _ in range(stops + 1):
            made = engine(
                private(model=torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(6, 3))),
                folder=folder, checkpoint_every=1)
            torch.manual_seed(stops)  # a global seed has no say
            for _ in range(4 // (stops + 1)):
                made.step()
            made.close()
        return next(iter(made.private.parameters.values())).flatten().tolist()

    assert run(tmp_path / "a", 0) == run(tmp_path / "b", 1)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_all_of_it_is_the_owners_alone(engine: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    engine(folder=run).close()
    assert _mode(run) == _mode(_set(run)) == 0o700 and _mode(run / SECRET) == 0o600
    assert {_mode(path) for path in [run / LEDGER, *_set(run).iterdir()]} == {0o600}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_secret_that_others_can_read_is_refused(mode: int, folder: Path, engine: Make) -> None:
    (folder / SECRET).chmod(mode)
    (folder / LEDGER).chmod(0o644)
    _refused(engine, folder, f"secret may be read or written by others .mode 0{mode:o}.*chmod 600")
    (folder / SECRET).chmod(0o600)
    assert engine(folder=folder, checkpoint_every=3).steps_done == 3
    assert _mode(folder / LEDGER) == 0o600, "what is no secret is repaired"


def test_a_folder_is_bound_to_its_data_if_asked(engine: Make, tmp_path: Path, folder: Path) -> None:
    x, y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3
    run = tmp_path / "bound"
    engine(folder=run, same_data=True).close()
    engine(folder=run, same_data=True).close()
    engine(folder=run).close()
    for change, words in (((x + 1e-6, y), "data: values of four rows"),
                          ((x, (y + 1) % 3), "data: values of four rows")):
        with pytest.raises(LedgerError, match=f"another run: its {words}"):
            engine(folder=run, same_data=True, dataset=change)
    _refused(engine, folder, "data were not recorded", same_data=True)


def test_a_folder_of_an_earlier_version_is_gone_on_with(engine: Make, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def before(*arguments: Any) -> dict[str, Any]:
        return {k: v for k, v in facts.facts(*arguments).items() if k != "target"}

    with monkeypatch.context() as patch:
        patch.setattr("fxperex.privacy.engine.facts", mock.Mock(facts=before, raw=facts.raw))
        engine(folder=tmp_path).close()
    assert engine(folder=tmp_path).steps_done == 0


def test_what_a_cut_ledger_hides_is_said(engine: Make, tmp_path: Path) -> None:
    made = engine(folder=tmp_path, checkpoint_every=2)
    for _ in range(3):
        made.step()
    text = str(made.guarantee())
    made.close()
    assert "no records were cut off the ledger's end" in text and "which was at step 2" in text
    assert "records were cut" not in str(engine().guarantee()), "there is no file to cut"


def test_a_ledger_in_memory_checks_nothing_and_counts_all() -> None:
    ledger = Ledger(bytes(32))
    ledger.open()
    ledger.append("begin", step=0, generation=0)
    assert ledger.has(
        1, ledger.head) and not ledger.has(2, ledger.head) and not ledger.has(0, "0" * 64)
