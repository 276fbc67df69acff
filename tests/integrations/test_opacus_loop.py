"""Opacus' loop with one import changed: the formula, the account, and everything that is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from fxperex import privacy
from fxperex.capture.forward import as_forward
from fxperex.errors import (
    BatchMixingError,
    BudgetError,
    ConfigError,
    FxperexError,
    LedgerError,
    SamplingError,
    ShapeError,
    StateError,
)
from fxperex.integrations import opacus as ours
from fxperex.testing import clipped, loop

ROWS, BATCH, RATE = 24, 8, 0.5
CRITERION = nn.CrossEntropyLoss()


class Setting:
    """A model, its data, and what make_private returns for them."""

    def __init__(self, batch: int = BATCH, noise: float | None = 1.0, seed: int | None = 5,
                 engine: ours.PrivacyEngine | None = None, **changes: Any) -> None:
        torch.manual_seed(1)
        self.x, self.y = torch.randn(ROWS, 4), torch.arange(ROWS) % 3
        self.plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.start = copy.deepcopy(self.plain)
        self.engine = engine or ours.PrivacyEngine()
        data: Any = TensorDataset(self.x, self.y)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        arguments: dict[str, Any] = {
            "module": self.plain, "max_grad_norm": 0.3, "noise_generator": generator,
            "optimizer": torch.optim.SGD(self.plain.parameters(), lr=RATE), "backend": "eager",
            "data_loader": DataLoader(data, batch_size=batch, shuffle=True)} | changes
        if noise is None:
            made = self.engine.make_private_with_epsilon(**arguments)
        else:
            made = self.engine.make_private(noise_multiplier=noise, **arguments)
        self.model, self.optimizer, self.loader = made[0], made[1], made[-1]

    def epoch(self, loader: Any = None) -> list[int]:
        """Trains one epoch as anyone would; returns the rows of each batch."""
        counts = []
        for x, y in loader or self.loader:
            self.optimizer.zero_grad()
            loss = CRITERION(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            counts.append(len(x))
        return counts

    def check_update(self, loss: Callable[[Any, Tensor], Any] = CRITERION,
                     clip: float = 0.3) -> None:
        """Checks that parameters moved from `start` by the clipped sum of all rows."""
        truth = loop(self.start, as_forward(loss), (self.x, self.y))
        sums, _ = clipped(truth, clip)
        before = dict(self.start.named_parameters())
        for name, p in self.plain.named_parameters():
            expected = before[name].double() - RATE * sums[name] / ROWS
            torch.testing.assert_close(p.double(), expected, rtol=0, atol=1e-6)

    @property
    def flat(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.plain.parameters()).detach()


def test_a_step_of_the_usual_loop_is_the_clipped_sum_over_the_expected_batch() -> None:
    setting = Setting(batch=ROWS, noise=1e-7)
    assert setting.epoch() == [ROWS]
    setting.check_update()


def test_parts_of_a_memory_manager_give_the_update_of_the_draw_undivided() -> None:
    undivided, divided = Setting(), Setting()
    undivided.epoch()
    updates = []
    with ours.BatchMemoryManager(data_loader=divided.loader, max_physical_batch_size=3,
                                 optimizer=divided.optimizer) as loader:
        for x, y in loader:
            assert len(x) <= 3
            before = divided.flat
            CRITERION(divided.model(x), y).backward()
            assert torch.equal(before, divided.flat)
            divided.optimizer.step()
            divided.optimizer.zero_grad()
            updates.append(not torch.equal(before, divided.flat))
    assert sum(updates) == len(divided.loader) == 3 and len(updates) > 3
    torch.testing.assert_close(divided.flat, undivided.flat, rtol=1e-5, atol=1e-6)


def test_the_loss_and_outputs_of_a_training_loop_are_numbers_when_asked() -> None:
    setting = Setting()
    correct: Any = 0
    expected = 0
    for x, y in setting.loader:
        plain = setting.start.train()
        plain.load_state_dict(setting.plain.state_dict())
        outputs = plain(x)
        output = setting.model(x)
        loss = CRITERION(output, y)
        predicted = np.argmax(output.detach().cpu().numpy(), axis=1)
        assert (predicted == outputs.argmax(1).numpy()).all()
        values, indices = torch.max(output, 1)
        torch.testing.assert_close(values.numbers(), outputs.max(1).values)
        correct += (indices == y).sum()
        expected += int((outputs.argmax(1) == y).sum())
        assert output.shape == outputs.shape
        loss.backward()
        setting.optimizer.step()
        assert loss.item() == pytest.approx(CRITERION(outputs, y).item(), rel=1e-5)
        assert f"{loss:.2f}" == f"{loss.item():.2f}"
    assert int(correct) == expected


def test_numbers_of_an_output_after_the_update_are_refused() -> None:
    setting = Setting(batch=ROWS)
    for x, y in setting.loader:
        output = setting.model(x)
        CRITERION(output, y).backward()
        setting.optimizer.step()
        with pytest.raises(StateError, match=r"before optimizer\.step"):
            output.argmax(1).tolist()


def test_evaluation_returns_what_the_module_returns() -> None:
    setting = Setting()
    setting.epoch()
    with torch.no_grad():
        assert torch.equal(setting.model(setting.x), setting.plain(setting.x))
    setting.model.eval()
    assert not setting.plain.training and isinstance(setting.model(setting.x), Tensor)
    setting.model.train()
    setting.epoch()
    assert setting.model.to_standard_module() is setting.plain
    assert not setting.plain._forward_hooks and not setting.plain._backward_hooks


@pytest.mark.parametrize("loss", [
    lambda out, y: nn.functional.cross_entropy(out, y, weight=WEIGHTS.to(out.dtype),
                                                  reduction="none").mean(),
    lambda out, y: ((out - nn.functional.one_hot(y, 3).to(out.dtype)) ** 2).sum(1).mean(),
    lambda out, y: 0.5 * nn.functional.nll_loss(out.log_softmax(-1), y) + out.pow(2).mean()])
def test_a_loss_of_ones_own_is_traced_at_the_first_backward(
        loss: Callable[[Any, Tensor], Any]) -> None:
    setting = Setting(batch=ROWS, noise=1e-7)
    for x, y in setting.loader:
        loss(setting.model(x), y).backward()
        setting.optimizer.step()
    setting.check_update(loss)


WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


def test_what_the_loop_computes_of_the_batch_is_part_of_the_program() -> None:
    setting = Setting(batch=ROWS // 2)
    plain = Setting(batch=ROWS // 2)
    plain.epoch()
    for x, y in setting.loader:
        low, high = x.to("cpu").chunk(2, dim=1)
        output = setting.model(torch.cat((low, high), 1))
        CRITERION(output.reshape(-1, 3), y.view(-1, 1).squeeze(1).long()).backward()
        setting.optimizer.step()
    assert torch.equal(setting.flat, plain.flat)


def test_a_collate_function_makes_the_same_rows() -> None:
    def collate(items: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])

    setting, plain = Setting(), Setting()
    data = setting.loader.dataset
    setting = Setting(data_loader=DataLoader(data, BATCH, collate_fn=collate))
    assert setting.epoch() == plain.epoch() and torch.equal(setting.flat, plain.flat)


def test_epsilon_is_that_of_opacus() -> None:
    theirs = pytest.importorskip("opacus.accountants").PRVAccountant()
    setting = Setting()
    for _ in range(2):
        setting.epoch()
    theirs.history = [(1.0, BATCH / ROWS, 2 * ROWS // BATCH)]
    assert setting.engine.accountant.history == theirs.history
    epsilon = setting.engine.get_epsilon(delta=1e-5)
    assert epsilon == pytest.approx(theirs.get_epsilon(1e-5, eps_error=5e-4), abs=1e-3)


def test_a_target_is_spent_and_no_more() -> None:
    setting = Setting(noise=None, target_epsilon=2.0, target_delta=1e-5, epochs=2,
                      engine=ours.PrivacyEngine(accountant="rdp"))
    setting.epoch()
    assert 0 < setting.engine.get_epsilon(1e-5) < 2.0
    setting.epoch()
    assert setting.engine.get_epsilon(1e-5) == pytest.approx(2.0, abs=1e-3)
    after = setting.flat
    with pytest.raises(BudgetError, match="all 6 steps"):
        setting.epoch()
    assert torch.equal(after, setting.flat)
    with pytest.warns(UserWarning, match="spent steps before"):
        Setting(noise=None, target_epsilon=2.0, target_delta=1e-5, epochs=2, engine=setting.engine,
                data_loader=setting.loader.original)


def test_shuffled_batches_are_accounted_for_as_what_they_are() -> None:
    setting = Setting(poisson_sampling=False, engine=ours.PrivacyEngine(accountant="rdp"))
    assert setting.epoch() == [BATCH] * 3
    assert setting.engine.accountant.steps == 1  # an epoch is one release
    assert setting.engine.get_epsilon(1e-5) == pytest.approx(
        privacy.epsilon(privacy.ShuffledSampler(ROWS, BATCH, 3), 1.0, 1e-5,
                                method="rdp", relation="zero-out"))


def test_a_learning_rate_schedule_reaches_the_users_optimizer() -> None:
    setting = Setting()
    schedule = torch.optim.lr_scheduler.StepLR(setting.optimizer, 1, 0.5)
    setting.epoch()
    schedule.step()
    assert setting.optimizer.original_optimizer.param_groups[0]["lr"] == RATE / 2


@pytest.mark.parametrize("account", ["rdp", pytest.param("prv", marks=pytest.mark.nightly)])
def test_a_noise_schedule_is_in_the_account(account: str) -> None:
    setting = Setting(engine=ours.PrivacyEngine(accountant=account))
    schedule = ours.ExponentialNoise(setting.optimizer, gamma=2.0)
    setting.epoch()
    schedule.step()
    setting.epoch()
    assert setting.engine.accountant.history == [(1.0, 1 / 3, 3), (2.0, 1 / 3, 3)]
    spent = setting.engine.get_epsilon(1e-5)
    same = Setting(engine=ours.PrivacyEngine(accountant=account))
    loud = Setting(noise=2.0, engine=ours.PrivacyEngine(accountant=account))
    for other in (same, loud):
        other.epoch()
        other.epoch()
    assert loud.engine.get_epsilon(1e-5) < spent < same.engine.get_epsilon(1e-5)


def test_a_clip_schedule_takes_hold_at_the_next_step() -> None:
    setting = Setting(batch=ROWS, noise=1e-7)
    schedule = ours.LambdaGradClip(setting.optimizer, scheduler_function=lambda e: 0.5**e)
    setting.epoch()
    setting.start.load_state_dict(setting.plain.state_dict())
    schedule.step()
    setting.epoch()
    setting.check_update(clip=0.15)


def test_schedules_have_the_values_of_opacus() -> None:
    theirs = pytest.importorskip("opacus.schedulers")

    class Noisy:
        noise_multiplier, max_grad_norm = 1.0, 0.3

    for name, arguments in [
            ("ExponentialNoise", {"gamma": 0.9}), ("StepNoise", {"step_size": 2, "gamma": 0.5}),
            ("LambdaNoise", {"noise_lambda": lambda e: 1 / (e + 1)}),
            ("ExponentialGradClip", {"gamma": 0.9}),
            ("StepGradClip", {"step_size": 2, "gamma": 0.5})]:
        attribute = "noise_multiplier" if "Noise" in name else "max_grad_norm"
        mine, other = Setting().optimizer, Noisy()
        schedules = [getattr(ours, name)(mine, **arguments), getattr(theirs, name)(other,
                                                                                  **arguments)]
        for _ in range(5):
            assert getattr(mine, attribute) == pytest.approx(getattr(other, attribute)), name
            for schedule in schedules:
                schedule.step()


def test_a_checkpoint_holds_the_account_and_goes_on_with_fresh_noise(tmp_path: Path) -> None:
    setting, path = Setting(), tmp_path / "run.pt"
    setting.epoch()
    setting.engine.save_checkpoint(path=path, module=setting.model, optimizer=setting.optimizer,
                                   checkpoint_dict={"epoch": 1})
    resumed = Setting(noise=2.0)
    checkpoint = resumed.engine.load_checkpoint(path=path, module=resumed.model,
                                                optimizer=resumed.optimizer)
    assert checkpoint["epoch"] == 1 and torch.equal(resumed.flat, setting.flat)
    resumed.epoch()
    setting.epoch()
    assert resumed.engine.accountant.history == [(1.0, 1 / 3, 3), (2.0, 1 / 3, 3)]
    with pytest.raises(ConfigError, match="would forget"):
        setting.engine.load_checkpoint(path=path, module=setting.model)
    with pytest.raises(ConfigError, match="same accountant"):
        ours.PrivacyEngine(accountant="rdp").load_checkpoint(path=path, module=setting.model)
    torch.save({"privacy_accountant_state_dict": {"history": []}}, path)
    with pytest.raises(ConfigError, match="no account of fxperex"):
        ours.PrivacyEngine().load_checkpoint(path=path, module=setting.model)


def test_the_validator_names_and_replaces_what_mixes_examples() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    assert not ours.ModuleValidator.is_valid(model)
    [error] = ours.ModuleValidator.validate(model)
    assert isinstance(error, BatchMixingError) and "BatchNorm2d" in str(error)
    with pytest.raises(BatchMixingError, match="BatchNorm2d"):
        ours.PrivacyEngine().validate(module=model)
    fixed = ours.ModuleValidator.fix_and_validate(model)
    assert isinstance(fixed[1], nn.GroupNorm) and ours.PrivacyEngine().is_compatible(module=fixed)
    assert not ours.ModuleValidator.is_valid(nn.Linear(1, 1).eval())


def _passes_over(s: Setting) -> None:
    for x, y in s.loader:
        if len(x) > 0:
            continue
        CRITERION(s.model(x), y).backward()


def _twice(s: Setting) -> None:
    for x, y in s.loader:
        loss = CRITERION(s.model(x), y)
        loss.backward()
        loss.backward()


def _without_step(s: Setting) -> None:
    for x, y in s.loader:
        CRITERION(s.model(x), y).backward()


def _with(change: Callable[[Setting, Tensor, Tensor], Any]) -> Callable[[Setting], None]:
    def loop(s: Setting) -> None:
        for x, y in s.loader:
            change(s, x, y).backward()
            s.optimizer.step()
    return loop


def _centred(s: Setting, x: Tensor, y: Tensor) -> Any:
    output = s.model(x)
    return CRITERION(output - output.mean(0), y)


def _of_an_earlier_batch() -> Callable[[Setting, Tensor, Tensor], Any]:
    held: list[Tensor] = []

    def loss(s: Setting, x: Tensor, y: Tensor) -> Any:
        held.append(y.float().mean())
        return CRITERION(s.model(x), y) * (held[-2] if len(held) > 1 else 1.0)
    return loss


@pytest.mark.parametrize(("loop", "kind", "words"), [
    (_passes_over, LedgerError, "passed over"),
    (_twice, LedgerError, "called twice"),
    (_without_step, LedgerError, "BatchMemoryManager"),
    (_with(_centred), BatchMixingError, "mean"),
    (_with(lambda s, x, y: CRITERION(s.model(x - x.mean(0)), y)), BatchMixingError, "mean"),
    (_with(lambda s, x, y: CRITERION(s.model(x), y.roll(1))), BatchMixingError, "roll"),
    (_with(lambda s, x, y: CRITERION(s.model(x), y.float().add_(1.0).long().clamp_(max=2)) * 1.0
           ), StateError, "in place"),
    (_with(_of_an_earlier_batch()), StateError, "earlier"),
    (_with(lambda s, x, y: (s.model(x) * torch.ones(3)).mean()), StateError, "first step"),
    (_with(lambda s, x, y: CRITERION(s.model(x), y) * float(s.flat.sum())), StateError,
     "not the one of the first step"),
    (lambda s: s.optimizer.step(), LedgerError, "without a backward"),
    (lambda s: s.optimizer.step(lambda: None), ConfigError, "closure"),
    (lambda s: s.optimizer.add_param_group({}), ConfigError, "call make_private|make_private"),
    (lambda s: CRITERION(s.model(s.x), s.y).backward(), LedgerError, "no row was drawn")])
def test_what_the_account_would_not_cover_is_refused(
        loop: Callable[[Setting], None], kind: type[FxperexError], words: str) -> None:
    setting = Setting(seed=2)
    with pytest.raises(kind, match=words):
        loop(setting)


@pytest.mark.parametrize(("changes", "kind", "words"), [
    ({"batch_first": False}, ConfigError, "first dimension"),
    ({"loss_reduction": "sum"}, ConfigError, "learning rate"),
    ({"grad_sample_mode": "ghost_fsdp"}, ConfigError, "hooks, functorch, ew, ghost"),
    ({"wrap_model": False}, ConfigError, "none are used"),
    ({"rand_on_empty": True}, ConfigError, "noise alone"),
    ({"clipping": "adaptive"}, ConfigError, "flat, per_layer"),
    ({"max_grad_norm": 0.0}, ConfigError, "max_grad_norm"),
    ({"noise": -1.0}, ConfigError, "noise_multiplier"),
    ({"engine": ours.PrivacyEngine(secure_mode=True)}, ConfigError, "exclude each other"),
    ({"alphas": [2.0]}, ConfigError, "no argument alphas"),
    ({"module": nn.Linear(2, 2)}, ConfigError, "not the module's"),
    ({"data_loader": [1]}, ConfigError, "torch DataLoader"),
    ({"data_loader": DataLoader(TensorDataset(torch.ones(4)), 2, collate_fn=list)}, ShapeError,
     "collate_fn"),
    ({"data_loader": DataLoader([{"x": torch.ones(4)}] * 4, 2)}, ShapeError, "tuple of tensors"),
    ({"data_loader": DataLoader(TensorDataset(torch.ones(4)), 2, sampler=WeightedRandomSampler(
        [1.0] * 4, 4))}, SamplingError, "WeightedRandomSampler")])
def test_what_has_no_meaning_is_refused_at_once(
        changes: dict[str, Any], kind: type[FxperexError], words: str) -> None:
    with pytest.raises(kind, match=words):
        Setting(**changes)


def test_what_is_private_already_or_of_another_run_is_refused() -> None:
    setting, other = Setting(), Setting()
    with pytest.raises(ConfigError, match="private already"):
        Setting(module=setting.model)
    with pytest.raises(ConfigError, match="two calls"):
        ours.BatchMemoryManager(data_loader=setting.loader, max_physical_batch_size=2,
                                optimizer=other.optimizer)
    with pytest.raises(ConfigError, match="another data set"):
        Setting(engine=setting.engine)
    with pytest.raises(ConfigError, match="understate"):
        ours.PrivacyEngine(accountant="gdp")


def test_a_loop_left_early_spends_its_step_once_and_takes_it_later() -> None:
    setting, steady = Setting(), Setting()
    steady.epoch()
    steady.epoch()
    setting.epoch()
    x, _ = next(iter(setting.loader))
    assert setting.engine.accountant.steps == 4
    assert setting.epoch()[0] == len(x) and setting.engine.accountant.steps == 6
    torch.testing.assert_close(setting.flat, steady.flat)
