"""fix: what cannot be private becomes what can, every change is told, and the caller's model stays
as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, prune

import fxperex
from fxperex.capture.forward import as_forward
from fxperex.errors import BatchMixingError, ConfigError, CoverageError
from fxperex.fixes.fix import groups
from fxperex.testing import clipped, error, loop


def test_a_resnet_becomes_private() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    batch = (torch.randn(3, 3, 32, 32), torch.randint(0, 4, (3,)))
    with pytest.raises(BatchMixingError, match="GroupNorm"):
        fxperex.transform(model, batch, nn.CrossEntropyLoss(), backend="eager")
    state = copy.deepcopy(model.state_dict())
    fixed, changes = fxperex.fix(model)
    assert len(changes) == 20 and all("BatchNorm2d" in c.before and "GroupNorm" in c.after
                                      for c in changes)
    assert str(changes[0]).startswith("bn1: BatchNorm2d(64")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    total, norms = clipped(loop(fixed, as_forward(nn.CrossEntropyLoss()), batch), 1.0)
    result = fxperex.transform(fixed, batch, nn.CrossEntropyLoss(), backend="eager").step(*batch)
    assert error(result.norms, norms) <= 1e-5
    assert error(fixed.conv1.weight.grad, total["conv1.weight"]) <= 1e-4


def test_affine_parts_modes_and_sharing_are_kept() -> None:
    shared = nn.BatchNorm1d(8, track_running_stats=False)  # which mixes in evaluation mode too
    model = nn.Sequential(shared, nn.Linear(8, 8), shared,
                          nn.BatchNorm1d(6, affine=False, eps=0.1,
                                         track_running_stats=False)).eval()
    with torch.no_grad():
        shared.weight.normal_()
    shared.bias.requires_grad_(False)
    fixed, changes = fxperex.fix(model)
    assert [c.name for c in changes] == ["0", "3"]
    assert fixed[0] is fixed[2] and not fixed[0].training
    assert torch.equal(fixed[0].weight, shared.weight) and fixed[0].weight is not shared.weight
    assert not fixed[0].bias.requires_grad
    assert fixed[3].weight is None and fixed[3].eps == 0.1


def test_statistics_and_embeddings() -> None:
    model = nn.ModuleDict({
        "norm": nn.InstanceNorm2d(4, track_running_stats=True), "plain": nn.InstanceNorm2d(4),
        "ids": nn.Embedding(5, 2, max_norm=1.0,
                            scale_grad_by_freq=True), "bag": nn.EmbeddingBag(5, 2, sparse=True)
    })
    fixed, changes = fxperex.fix(model)
    assert [c.name for c in changes] == ["norm", "ids", "bag"]
    assert "running statistics" in changes[0].why and "max_norm" in changes[
        1].why and "sparse" in changes[2].why
    out = fixed["norm"](torch.randn(2, 4, 3, 3))
    assert torch.isfinite(out).all() and not fixed["norm"].state_dict()
    assert fixed[
        "ids"].max_norm is None and not fixed["ids"].scale_grad_by_freq and not fixed["bag"].sparse


def test_nothing_to_fix_and_nothing_fixable() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3))
    assert fxperex.fix(model)[1] == []
    assert isinstance(fxperex.fix(nn.BatchNorm1d(8))[0], nn.GroupNorm)
    with pytest.raises(CoverageError, match="lazy"):
        fxperex.fix(nn.Sequential(nn.LazyBatchNorm1d()))
    with pytest.raises(ConfigError, match=r"torch\.nn\.Module"):
        fxperex.fix(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "found"), [(64, 16), (512, 32), (3, 1), (12, 3), (96, 24),
                                                 (7, 1), (1, 1)])
def test_a_divisor_that_fits(channels: int, found: int) -> None:
    assert groups(channels) == found


def _neutral(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode in which every BatchNorm, and every GroupNorm in the place of one,
    copies its input.
    """
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, _BatchNorm):
            module.eps = 0.0
            module.reset_running_stats()
            module.reset_parameters()
        elif isinstance(module, nn.GroupNorm):
            module.forward = torch.clone  # type: ignore[method-assign]
    return copied


TIMM = ("mobilenetv3_small_050", "regnety_002", "efficientnet_b0", "rexnet_100", "vovnet39a",
        "cspresnet50", "tresnet_m", "densenet121", "ghostnet_050", "hardcorenas_a", "resnet18",
        "res2net50_14w_8s", "inception_v4", "xception41", "dla34", "hrnet_w18_small", "repvgg_a0",
        "selecsls42", "skresnet18", "lcnet_035", "tinynet_e", "semnasnet_050", "spnasnet_100",
        "mnasnet_small", "fbnetc_100", "gernet_s", "darknet21", "resnetv2_50x1_bit",
        "ese_vovnet19b_slim", "levit_128s", "convit_tiny", "mobilevit_xxs", "edgenext_xx_small",
        "efficientformer_l1", "mixnet_s", "dpn48b")


def _agrees(model: nn.Module, size: int) -> None:
    norms = sum(isinstance(m, _BatchNorm) for m in model.modules())
    fixed, changes = fxperex.fix(model)
    assert len(changes) == norms and not any(isinstance(m, _BatchNorm) for m in fixed.modules())
    x = torch.randn(2, 3, size, size).double()  # without norms numbers grow large
    with torch.no_grad():
        torch.testing.assert_close(_neutral(fixed.double())(x), _neutral(model.double())(x))


@pytest.mark.parametrize(("name", "size"), [("mobilenetv3_small_050", 32), ("regnety_002", 32)])
def test_all_but_the_norms_of_a_model_of_timm_stays(name: str, size: int) -> None:
    _agrees(pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=4), size)


@pytest.mark.nightly
@pytest.mark.parametrize("name", TIMM)
def test_all_but_the_norms_of_many_models_of_timm_stays(name: str) -> None:
    model = pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=4)
    _agrees(model, model.default_cfg["input_size"][-1])


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: what comes after the norm is inside it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Renamed(nn.BatchNorm2d):
    """A subclass with nothing of its own."""


class Transposed(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Functional(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Trains(nn.BatchNorm2d):
    """Like its base in evaluation mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


class Reversed(Activated):
    def forward(self, x: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self, self.act(x))


def test_a_subclass_keeps_what_comes_after_its_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Activated(8), Renamed(8))
    fixed, changes = fxperex.fix(model)
    assert [type(m) for m in fixed[1]] == [nn.GroupNorm, nn.Dropout, nn.LeakyReLU] and type(
        fixed[2]) is nn.GroupNorm
    assert fixed[1].act.negative_slope == 0.2 and "LeakyReLU" in changes[0].after and fixed[
        1].training


@pytest.mark.parametrize("layer", [Transposed, Functional, Trains, Reversed])
def test_a_subclass_that_does_more_is_refused_by_name_and_evaluation_is_a_way_out(
        layer: type[_BatchNorm]) -> None:
    model = nn.Sequential(nn.Identity(), layer(4))
    with pytest.raises(CoverageError, match=rf"1, a \w+\.{layer.__name__}.*does more.*Replace "
                                            r"model\.1 yourself.*\.eval"):
        fxperex.fix(model)
    model[1].eval()
    assert fxperex.fix(model)[1] == []


def test_an_instance_norm_keeps_all_but_its_statistics() -> None:
    class Shifted(nn.InstanceNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    class Reads(nn.InstanceNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.running_mean.sum()

    fixed, changes = fxperex.fix(nn.Sequential(Shifted(4, track_running_stats=True)))
    assert len(changes) == 1 and (fixed(torch.randn(2, 4, 3, 3)) >= 0).all()
    with pytest.raises(CoverageError, match=r"Reads.*without running statistics"):
        fxperex.fix(nn.Sequential(Reads(4, track_running_stats=True)))


def test_norms_in_evaluation_mode_stay_and_are_private_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),
                          nn.InstanceNorm2d(4, track_running_stats=True), nn.Flatten(),
                          nn.Linear(16, 3)).double()
    model(torch.randn(5, 3, 4, 4).double())
    model.eval()
    fixed, changes = fxperex.fix(model)
    assert changes == [] and torch.equal(fixed[1].running_var, model[1].running_var)
    batch = (torch.randn(3, 3, 4, 4).double(), torch.tensor([0, 1, 2]))
    norms = clipped(loop(fixed, as_forward(nn.CrossEntropyLoss()), batch), 1.0)[1]
    assert error(
        fxperex.transform(fixed, batch, nn.CrossEntropyLoss(), backend="eager").step(*batch).norms,
        norms) <= 1e-9


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [
    nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm,
    lambda m: prune.l1_unstructured(m, "weight", 0.4)
])
def test_computed_weights_are_copied_and_computed_anew(
        wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(wrap(nn.Linear(5, 6)), nn.BatchNorm1d(6))
    model(torch.randn(4, 5))  # an old spectral norm has a computed weight from then on
    fixed, changes = fxperex.fix(model)
    assert [c.name for c in changes] == ["1"] and fixed[0] is not model[0]
    torch.testing.assert_close(fixed[0].eval()(torch.ones(2, 5)), model[0].eval()(torch.ones(2, 5)))
    fixed(torch.randn(4, 5)).square().sum().backward()
    assert all(p.grad is not None for p in fixed.parameters()) and all(p.grad is None
                                                                       for p in model.parameters())


def test_what_a_replacement_would_lose_is_refused() -> None:
    hooked = nn.Sequential(nn.BatchNorm1d(4))
    handle = hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(CoverageError, match=r"0, a .*BatchNorm1d, has hooks.*remove"):
        fxperex.fix(hooked)
    handle.remove()
    assert len(fxperex.fix(hooked)[1]) == 1
    normed = nn.Sequential(parametrizations.weight_norm(nn.BatchNorm1d(4), dim=None))
    with pytest.raises(CoverageError, match="computes its weight"):
        fxperex.fix(normed)
    nn.utils.parametrize.remove_parametrizations(normed[0], "weight")
    assert len(fxperex.fix(normed)[1]) == 1


def test_a_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    model.file = iter(x for x in range(3))  # type: ignore[assignment]
    with pytest.raises(CoverageError, match=r"cannot be copied.*TypeError.*GroupNorm yourself"):
        fxperex.fix(model)


def test_fixing_draws_nothing_from_the_callers_generator() -> None:
    before = torch.get_rng_state()
    fxperex.fix(nn.Sequential(Activated(4), nn.BatchNorm1d(3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_norm_as_a_function_is_the_proofs_to_refuse() -> None:
    class Inline(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(super().forward(x), None, None, training=True)

    fixed, changes = fxperex.fix(Inline(4, 4))
    assert changes == []
    with pytest.raises(BatchMixingError):
        fxperex.transform(fixed, (torch.randn(3, 4), torch.zeros(3).long()), nn.CrossEntropyLoss(),
                          backend="eager")
