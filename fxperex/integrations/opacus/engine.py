"""PrivacyEngine with Opacus' arguments and return values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from fxperex.capture.distributed import world_size
from fxperex.clipping import Clip, Flat, PerLayer
from fxperex.errors import ConfigError, SamplingError
from fxperex.integrations.opacus.account import METHODS, Account
from fxperex.integrations.opacus.objects import PrivateLoader, PrivateModule, PrivateOptimizer
from fxperex.integrations.opacus.run import Run
from fxperex.integrations.opacus.schedulers import Scheduler
from fxperex.integrations.opacus.settings import Settings
from fxperex.integrations.opacus.validator import ModuleValidator
from fxperex.privacy import calibration
from fxperex.privacy.checks import one_of, positive, probability, whole_number

# Opacus' ways to one gradient for each example. The plan chooses among ours for every node.
MODES = ("hooks", "functorch", "ew", "ghost")
# Keyword arguments that are passed on to `fxperex.transform`.
OPTIONS = ("strategy", "memory", "physical_batch", "autocast", "backend")
Returned = tuple[Any, ...]


class PrivacyEngine:
    """Makes model, optimizer and data loader private; one account for all it made.

    accountant: "prv" (by privacy loss distributions) or "rdp". secure_mode: True refuses seeds;
    noise is ChaCha20's with or without it. Raises ConfigError.
    """

    def __init__(self, *, accountant: str = "prv", secure_mode: bool = False) -> None:
        self.accountant, self.secure_mode = Account(accountant), secure_mode
        self.dataset: Any = None

    def make_private(
            self, *, module: nn.Module, optimizer: torch.optim.Optimizer, criterion: Any = None,
            data_loader: DataLoader[Any], noise_multiplier: float,
            max_grad_norm: float | list[float], batch_first: bool = True,
            loss_reduction: str = "mean", poisson_sampling: bool = True, clipping: str = "flat",
            noise_generator: torch.Generator | None = None, grad_sample_mode: str = "hooks",
            wrap_model: bool = True, rand_on_empty: bool = False, **kwargs: Any) -> Returned:
        """Returns (model, optimizer, data loader); in mode "ghost" also the criterion, before the
        loader.

        The loss is the one that `backward()` is first called on; `criterion` is returned as it is.
        kwargs: strategy, memory, physical_batch, autocast, backend, as in `fxperex.transform`.
        Raises ConfigError for what has no meaning here.
        """
        positive(noise_multiplier, "noise_multiplier")
        run = self._run(
            module, optimizer, data_loader, noise_multiplier, max_grad_norm, None, poisson_sampling,
            clipping, noise_generator, kwargs)
        _refuse(batch_first, loss_reduction, grad_sample_mode, wrap_model, rand_on_empty)
        return _returned(run, data_loader, criterion, grad_sample_mode)

    def make_private_with_epsilon(
            self, *, module: nn.Module, optimizer: torch.optim.Optimizer, criterion: Any = None,
            data_loader: DataLoader[Any], target_epsilon: float, target_delta: float, epochs: int,
            max_grad_norm: float | list[float], batch_first: bool = True,
            loss_reduction: str = "mean", poisson_sampling: bool = True, clipping: str = "flat",
            noise_generator: torch.Generator | None = None, grad_sample_mode: str = "hooks",
            wrap_model: bool = True, **kwargs: Any) -> Returned:
        """Returns as `make_private`, with the noise with which `epochs` spend `target_epsilon`.

        A step after these epochs raises BudgetError. Warns if this engine has spent before: both
        add up.
        """
        target = positive(target_epsilon, "target_epsilon")
        delta = probability(target_delta, "target_delta")
        planned = whole_number(epochs, "epochs", 1)
        if len(self.accountant):
            warnings.warn(f"this engine has spent steps before; target_epsilon {target:g} is for "
                          "the new run alone, and get_epsilon reports both", stacklevel=2)
        run = self._run(
            module, optimizer, data_loader, 1.0, max_grad_norm, planned, poisson_sampling,
            clipping, noise_generator, kwargs)
        _refuse(batch_first, loss_reduction, grad_sample_mode, wrap_model, False)
        asked = run.asked
        assert asked.steps is not None
        run.noise_multiplier = calibration.noise_multiplier_for(
            target, delta, asked.sampler(run.rows.size, asked.steps, 0), method=asked.method,
            relation=asked.relation)
        return _returned(run, data_loader, criterion, grad_sample_mode)

    def get_epsilon(self, delta: float) -> float:
        """Returns an upper bound of epsilon at `delta` of all that was spent. Raises ConfigError.
        """
        return self.accountant.get_epsilon(delta)

    def is_compatible(self, *, module: nn.Module, optimizer: Any = None,
                      data_loader: Any = None) -> bool:
        """Returns whether no layer of `module` mixes examples."""
        return ModuleValidator.is_valid(module)

    def validate(self, *, module: nn.Module, optimizer: Any = None,
                 data_loader: Any = None) -> None:
        """Raises the FxperexError of a layer of `module` that mixes examples."""
        ModuleValidator.validate(module, strict=True)

    @classmethod
    def get_compatible_module(cls, module: nn.Module) -> nn.Module:
        """Returns a copy of `module` in which no layer mixes examples. Raises an FxperexError."""
        return ModuleValidator.fix_and_validate(module)

    def save_checkpoint(
            self, *, path: Any, module: nn.Module, optimizer: PrivateOptimizer | None = None,
            noise_scheduler: Scheduler | None = None, grad_clip_scheduler: Scheduler | None = None,
            checkpoint_dict: dict[str, Any] | None = None,
            module_state_dict_kwargs: dict[str, Any] | None = None,
            torch_save_kwargs: dict[str, Any] | None = None) -> None:
        """Writes module, optimizer, schedulers and account with `torch.save`.

        A crash between two checkpoints forgets what was spent since. `fxperex.privacy` writes a
        ledger that does not.
        """
        checkpoint = dict(checkpoint_dict or {})
        checkpoint["module_state_dict"] = module.state_dict(**(module_state_dict_kwargs or {}))
        checkpoint["privacy_accountant_state_dict"] = self.accountant.state_dict()
        parts = {"optimizer": optimizer, "noise_scheduler": noise_scheduler,
                 "grad_clip_scheduler": grad_clip_scheduler}
        checkpoint |= {f"{n}_state_dict": p.state_dict() for n, p in parts.items() if p is not None}
        torch.save(checkpoint, path, **(torch_save_kwargs or {}))

    def load_checkpoint(
            self, *, path: Any, module: nn.Module, optimizer: PrivateOptimizer | None = None,
            noise_scheduler: Scheduler | None = None, grad_clip_scheduler: Scheduler | None = None,
            module_load_dict_kwargs: dict[str, Any] | None = None,
            torch_load_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns the checkpoint, after all parts were set to it; the account first.

        Noise that follows is fresh. Raises ConfigError for the account of another library.
        """
        checkpoint = torch.load(path, **{"weights_only": True, **(torch_load_kwargs or {})})
        self.accountant.load_state_dict(checkpoint.get("privacy_accountant_state_dict"))
        module.load_state_dict(checkpoint["module_state_dict"], **(module_load_dict_kwargs or {}))
        parts = {"optimizer": optimizer, "noise_scheduler": noise_scheduler,
                 "grad_clip_scheduler": grad_clip_scheduler}
        for name, part in parts.items():
            state = checkpoint.pop(f"{name}_state_dict", None)
            if (part is None) != (state is None):
                warnings.warn(f"the {name} is {'only' if state else 'not'} in the checkpoint and "
                              f"{'not' if state else 'only'} among the arguments; it stays as it "
                              "is", stacklevel=2)
            elif part is not None and state is not None:
                part.load_state_dict(state)
        return checkpoint

    def _run(self, module: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any],
             noise_multiplier: float, bound: Any, epochs: int | None, poisson: bool,
             clipping: str, generator: torch.Generator | None, options: dict[str, Any]) -> Run:
        _check_objects(module, optimizer, loader)
        _check_loader(loader)
        if self.dataset is not None and self.dataset is not loader.dataset:
            raise ConfigError("this engine was used with another data set, and its account is of "
                              "that one. Make a PrivacyEngine for each data set")
        if generator is not None and self.secure_mode:
            raise ConfigError("secure_mode and a noise_generator exclude each other: who knows the "
                              "seed can subtract the noise")
        unknown = sorted(options.keys() - set(OPTIONS))
        if unknown:
            raise ConfigError(f"make_private has no argument {', '.join(unknown)}; beyond Opacus' "
                              f"own it takes {', '.join(OPTIONS)}")
        rule = _rule(clipping)
        rule(bound)
        size, batch = len(loader.dataset), loader.batch_size  # type: ignore[arg-type]
        per_epoch = len(loader) if poisson else size // (batch or 1)
        if per_epoch < 1:
            raise ConfigError(f"the data loader has no full batch of {batch} in {size} rows")
        expected = size / per_epoch if poisson else float(batch or 1)
        steps = None if epochs is None else epochs * per_epoch
        seed = None if generator is None else generator.initial_seed()
        collate = None if loader.collate_fn is default_collate else loader.collate_fn
        data: Any = loader.dataset
        if type(data) is TensorDataset and collate is None:
            data = data.tensors  # rows are read all at once
        asked = Settings(module, optimizer, data, expected, per_epoch, poisson, rule,
                         steps, METHODS[self.accountant.mechanism()], seed, loader.num_workers,
                         collate, options)
        run = Run(asked, noise_multiplier, bound, self.accountant)
        self.dataset = loader.dataset
        return run


def _returned(run: Run, loader: DataLoader[Any], criterion: Any, mode: str) -> Returned:
    model, optimizer = PrivateModule(run.asked.module, run), PrivateOptimizer(
        run.asked.optimizer, run)
    middle = (criterion or nn.CrossEntropyLoss(),) if mode == "ghost" else ()
    return (model, optimizer, *middle, PrivateLoader(loader, run))


def _rule(clipping: str) -> Any:
    one_of(clipping, "clipping", ("flat", "per_layer"))
    return _per_layer if clipping == "per_layer" else _flat


def _flat(bound: Any) -> Clip:
    return Flat(positive(bound, "max_grad_norm"))


def _per_layer(bound: Any) -> Clip:
    return PerLayer(tuple(bound) if isinstance(bound, Sequence) else bound)


def _check_objects(module: Any, optimizer: Any, loader: Any) -> None:
    if isinstance(module, PrivateModule) or isinstance(optimizer, PrivateOptimizer):
        raise ConfigError("module or optimizer is private already; give make_private the ones that "
                          "were there before")
    if not isinstance(module, nn.Module):
        raise ConfigError(f"module must be a torch.nn.Module; got {type(module).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer must be a torch.optim.Optimizer; got "
                          f"{type(optimizer).__name__}")
    names = {id(p) for p in module.parameters()}
    if any(id(p) not in names for group in optimizer.param_groups for p in group["params"]):
        raise ConfigError("the optimizer holds parameters that are not the module's. Make it after "
                          "ModuleValidator.fix, over the fixed module's parameters")
    if world_size() > 1:
        raise ConfigError("make_private is for one process; over several ranks use "
                          "fxperex.privacy.PrivacyEngine")
    if not isinstance(loader, DataLoader):
        raise ConfigError(f"data_loader must be a torch DataLoader; got {type(loader).__name__}")


def _check_loader(loader: DataLoader[Any]) -> None:
    """Raises SamplingError for a loader whose own way of drawing would be lost without a word."""
    if loader.batch_size is None or type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise SamplingError(f"the data loader draws by its own {type(loader.sampler).__name__}, "
                            "which has no account. Rows are drawn by chance alone; leave sampler "
                            "and batch_sampler out")


def _refuse(batch_first: bool, reduction: str, mode: str, wrap: bool, on_empty: bool) -> None:
    """Raises ConfigError for a setting of Opacus' that has no meaning here."""
    if not batch_first:
        raise ConfigError("batch_first=False: examples are the first dimension of every tensor of "
                          "the batch. Transpose in the model's forward")
    if reduction != "mean":
        raise ConfigError(f"loss_reduction={reduction!r}: sums are always divided by the expected "
                          "batch, a constant. Multiply the learning rate by it for a sum")
    if mode not in MODES:
        raise ConfigError(f"grad_sample_mode must be one of {', '.join(MODES)}, and the plan "
                          f"chooses for every node whatever it is; got {mode!r}")
    if not wrap:
        raise ConfigError("wrap_model=False is for hooks on the user's module, and none are used: "
                          "train with the model that make_private returns, or take "
                          "fxperex.privacy.PrivacyEngine, which leaves the loop to you")
    if on_empty:
        raise ConfigError("rand_on_empty: an empty draw needs no random rows; it is a step of "
                          "noise alone")
