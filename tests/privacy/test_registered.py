"""What a user's loop holds beside the model: it is saved with the run, and comes back with it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxperex
from fxperex.errors import ConfigError, LedgerError
from fxperex.privacy import PrivacyEngine, load_weights

STEPS, EVERY = 8, 3
Build = Callable[..., PrivacyEngine]


class Training:
    """A loop with Adam, a cosine schedule and a moving average, in a folder."""

    def __init__(self, engine: Build, step: fxperex.PerExampleModule, folder: Path,
                 after: bool = False) -> None:
        self.step = step
        torch.manual_seed(0)
        step.model.reset_parameters()  # type: ignore[operator]
        optimizer = torch.optim.Adam(self.step.parameters.values(), lr=0.1)

        def others() -> None:
            self.scheduler = CosineAnnealingLR(optimizer, T_max=STEPS)
            self.average = AveragedModel(self.step.model,
                                         multi_avg_fn=get_ema_multi_avg_fn(0.9))

        if not after:
            others()
        self.engine = engine(step, optimizer=optimizer, folder=folder, epochs=2,
                             checkpoint_every=EVERY, seed=None, secure=False)
        if after:
            others()
        self.engine.register(scheduler=self.scheduler, average=self.average)

    def own(self) -> None:
        self.scheduler.step()
        self.average.update_parameters(self.step.model)

    def state(self) -> list[Any]:
        rates = [group["lr"] for group in self.engine.optimizer.param_groups]
        moments = [x for _, s in sorted(self.engine.optimizer.state_dict()["state"].items())
                   for _, x in sorted(s.items())]
        tensors = [*self.step.parameters.values(), *self.average.parameters(), *moments]
        return [rates, self.scheduler.state_dict(), *(x.detach().clone() for x in tensors)]


def same(one: list[Any], two: list[Any]) -> bool:
    pairs = zip(one, two, strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


@pytest.fixture
def shared(private: Callable[..., fxperex.PerExampleModule]) -> fxperex.PerExampleModule:
    return private()


@pytest.fixture
def smooth(engine: Build, shared: fxperex.PerExampleModule,
           tmp_path: Path) -> tuple[Path, list[Any]]:
    """A run that nothing ends, and its folder as it was before the first step."""
    training = Training(engine, shared, tmp_path / "smooth")
    for _ in training.engine:
        training.own()
    training.engine.close()
    return tmp_path / "smooth" / "secret", training.state()


@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_ends_anywhere_goes_on_to_the_same_bits(
        after: bool, smooth: tuple[Path, list[Any]], engine: Build,
        shared: fxperex.PerExampleModule, tmp_path: Path) -> None:
    secret, expected = smooth
    for steps in range(1, 6):
        for own in (False, True):
            folder = tmp_path / f"{steps}{own}"
            folder.mkdir(mode=0o700)
            (folder / "secret").write_bytes(secret.read_bytes())
            (folder / "secret").chmod(0o600)
            training = Training(engine, shared, folder)
            for _ in training.engine:
                if training.engine.steps_done == steps and not own:
                    break  # before the user's own code of this step
                training.own()
                if training.engine.steps_done == steps:
                    break
            training.engine.close()
            training = Training(engine, shared, folder, after)
            assert training.engine.steps_done <= steps
            for _ in training.engine:
                training.own()
            training.engine.close()
            assert training.engine.books.units == STEPS
            assert same(training.state(), expected), (steps, own)


def test_calls_of_step_save_what_the_user_did_after_the_step(
        engine: Build, shared: fxperex.PerExampleModule, tmp_path: Path) -> None:
    training = Training(engine, shared, tmp_path)
    for _ in range(EVERY + 1):
        training.engine.step()
        training.own()
    rate = training.scheduler.get_last_lr()
    training.engine.close()
    training = Training(engine, shared, tmp_path)
    assert training.engine.steps_done == EVERY and training.scheduler.last_epoch == EVERY
    training.engine.step()
    training.own()
    assert training.scheduler.get_last_lr() == rate


def test_a_state_that_nobody_registers_stops_the_next_step_before_its_debit(
        engine: Build, shared: fxperex.PerExampleModule, tmp_path: Path) -> None:
    training = Training(engine, shared, tmp_path)
    for _ in training.engine:
        training.own()
        if training.engine.steps_done == EVERY:
            break
    training.engine.checkpoint()
    training.engine.close()
    run = engine(training.step, optimizer=torch.optim.Adam(training.step.parameters.values()),
                 folder=tmp_path, epochs=2, checkpoint_every=EVERY, seed=None, secure=False)
    spent = run.books.units
    with pytest.raises(LedgerError, match="state of scheduler, average"):
        run.step()
    run.register(scheduler=CosineAnnealingLR(run.optimizer, STEPS))
    with pytest.raises(LedgerError, match="state of average,"):
        run.step()
    assert run.books.units == spent and run.steps_done == EVERY


class Held:
    """Has whatever state it is given."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def test_states_of_any_structure_come_back_equal(engine: Build, tmp_path: Path) -> None:
    state = {"a": [1, (2.5, None), {"b": "text", 3: True}], "n": Counter({4: 2}),
             "inf": float("inf"), "t": [torch.arange(3), {"u": torch.ones(2, 2).double()}]}
    run = engine(folder=tmp_path, checkpoint_every=1)
    optimizer = run.optimizer
    plain = SequentialLR(optimizer, [LambdaLR(optimizer, lambda n: 1.0),
                                     MultiStepLR(optimizer, [2])], [3])
    run.register(held=Held(state), plain=plain)
    run.step()
    plain.step()
    run.checkpoint()
    run.close()
    run, held = engine(folder=tmp_path, checkpoint_every=1), Held(None)
    run.register(held=held, plain=SequentialLR(
        run.optimizer, [LambdaLR(run.optimizer, lambda n: 1.0), MultiStepLR(run.optimizer, [2])],
        [3]))
    tensors = [held.state["t"][0], held.state["t"][1]["u"]]
    assert all(map(torch.equal, tensors, [torch.arange(3), torch.ones(2, 2).double()]))
    assert {k: v for k, v in held.state.items() if k != "t"} == {
        k: v for k, v in state.items() if k != "t"}
    assert isinstance(held.state["n"], Counter) and isinstance(held.state["a"][1], tuple)


def _twice(run: PrivacyEngine) -> None:
    run.register(a=Held({}))
    run.register(a=Held({}))


def _same(run: PrivacyEngine) -> None:
    held = Held({})
    run.register(a=held)
    run.register(b=held)


REFUSED: dict[str, tuple[Callable[[PrivacyEngine], object], str]] = {
    "no state": (lambda run: run.register(ema=3), "state_dict.*ema is 3"),
    "no way back": (lambda run: run.register(a=torch.Generator()), "load_state_dict"),
    "code in a state": (lambda run: run.register(a=Held({"f": [print]})),
                        r"a\.f\.0 holds a builtin"),
    "a key that is no name": (lambda run: run.register(a=Held({(1, 2): 3})), "a holds a dict"),
    "a name twice": (_twice, "a is registered already"),
    "an object twice": (_same, "registered as a already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_registered_is_refused_and_nothing_is_spent(name: str,
                                                                   engine: Build) -> None:
    call, words = REFUSED[name]
    run = engine()
    with pytest.raises(ConfigError, match=words):
        call(run)
    assert run.books.units == 0


def test_a_resumed_run_refuses_what_would_begin_anew(engine: Build, tmp_path: Path) -> None:
    run = engine(folder=tmp_path, checkpoint_every=1)
    run.register(a=Held({"x": torch.ones(2)}))
    run.step()
    run.checkpoint()
    run.close()
    run = engine(folder=tmp_path, checkpoint_every=1)
    with pytest.raises(LedgerError, match=r"step 1 holds no state of b, only of a"):
        run.register(b=Held({}))

    class Other(Held):
        def load_state_dict(self, state: Any) -> None:
            raise ValueError("another size")

    with pytest.raises(LedgerError, match=r"state of a .*does not fit.*another size"):
        run.register(a=Other({}))
    run.register(a=Held({}))
    run.step()
    run.register(b=Held({}))  # from here on, and so it is meant


def test_weights_and_states_are_read_without_the_run(
        engine: Build, shared: fxperex.PerExampleModule, tmp_path: Path) -> None:
    training = Training(engine, shared, tmp_path)
    for _ in training.engine:
        training.own()
    weights = load_weights(tmp_path)  # while the engine holds the folder
    assert weights.keys() == training.step.parameters.keys()
    assert all(torch.equal(weights[n], p) for n, p in training.step.parameters.items())
    average = load_weights(tmp_path, "average")
    assert all(torch.equal(average[n], x) for n, x in training.average.state_dict().items())
    with pytest.raises(LedgerError, match="no state of 'ema'; it holds: scheduler, average"):
        load_weights(tmp_path, "ema")
    with pytest.raises(LedgerError, match="no folder of a run"):
        load_weights(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="must be a path"):
        load_weights(3)  # type: ignore[arg-type]
    (path,) = tmp_path.glob("checkpoint-*/tensors.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(LedgerError, match="damaged"):
        load_weights(tmp_path)


def test_epochs_yield_the_steps_of_each_and_go_on_in_the_middle(engine: Build,
                                                                tmp_path: Path) -> None:
    taken: list[int] = []
    run = engine(epochs=3, folder=tmp_path)
    for epoch, steps in run.epochs():
        for _ in steps:
            taken.append(epoch)
            if len(taken) == 6:
                break
        if len(taken) == 6:
            break
    assert taken == [0] * 4 + [1] * 2
    run.checkpoint()
    run.close()
    run = engine(epochs=3, folder=tmp_path)
    for epoch, steps in run.epochs():
        for _ in steps:
            taken.append(epoch)
            if len(taken) == 9:
                break  # of this epoch: it is yielded again
    assert taken == [0] * 4 + [1] * 4 + [2] * 4 and run.steps_done == len(run) == 12


def test_an_epoch_of_which_no_step_is_taken_ends_the_loop(engine: Build) -> None:
    with pytest.raises(LedgerError, match="no step of epoch 0 was taken"):
        for _ in engine().epochs():
            pass


def test_a_closed_run_spends_nothing_that_is_in_no_file(engine: Build, tmp_path: Path) -> None:
    run = engine(folder=tmp_path)
    run.step()
    run.close()
    with pytest.raises(LedgerError, match="is closed"):
        run.step()
    assert run.books.units == 1 and run.steps_done == 1


def test_the_log_tells_progress(engine: Build, tmp_path: Path,
                                caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxperex"):
        for _ in engine(folder=tmp_path, checkpoint_every=2):
            pass
    told = [record.getMessage() for record in caplog.records]
    assert "step 2 of 4" in told and any(t.startswith("checkpoint of step 4 of 4") for t in told)
