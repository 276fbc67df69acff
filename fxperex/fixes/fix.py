"""fix: a model that cannot be private -> a copy that can, and the list of all changes.

BatchNorm becomes GroupNorm: normalisation over an example's own channels (Wu and He, arXiv
1803.08494). It keeps the affine part and drops the running statistics, because they are data. The
caller's model does not change. What a subclass of BatchNorm does after normalising becomes modules
of its own, or the subclass is refused. In evaluation mode a BatchNorm applies fixed numbers, mixes
nothing, and stays.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from fxperex.errors import ConfigError, CoverageError
from fxperex.fixes.replacements import after_the_norm, same_outputs

# Groups of a GroupNorm, and channels of a group: too few channels have hardly any variance.
MOST_GROUPS, FEWEST_CHANNELS = 32, 4
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Change:
    """Module `name` was `before` and is `after`, because of `why`."""

    name: str
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        return f"{self.name or 'the model itself'}: {self.before} -> {self.after} ({self.why})"


def fix(model: nn.Module) -> tuple[nn.Module, list[Change]]:
    """Returns (a copy of `model` in which no layer mixes examples, its Changes; none if none was
    needed).

    Every replacement is tried first: except for the normalisation it computes what the layer does,
    in training and in evaluation. Raises ConfigError for anything but a module. Raises
    CoverageError for a layer that has no sizes yet, does more than can be kept, or cannot be
    copied. Mixing that only the graph shows (`x - x.mean(0)` in a forward) stays;
    `fxperex.transform` refuses it.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for name, module in model.named_modules():
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(map(is_lazy, tensors)):
            raise CoverageError(f"{name or 'the model'} is lazy and has no sizes yet; run the "
                                "model once first")
    changes: list[Change] = []
    return _fixed(_copied(model), "", changes, {}), changes


def _copied(model: nn.Module) -> nn.Module:
    """Returns a deep copy. It also has the tensors that modules computed, as by `prune` or the old
    `weight_norm`, until its own forward computes them again.
    """
    computed: dict[int, Tensor] = {}
    for module in model.modules():
        for value in pytree.tree_leaves(list(vars(module).values())):
            if isinstance(value, Tensor) and not value.is_leaf:
                computed[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
    try:
        return copy.deepcopy(model, computed)  # type: ignore[arg-type]
    except Exception as error:  # whatever the user's own objects raise
        raise CoverageError("the model cannot be copied, and fix leaves yours as it is: "
                            f"{type(error).__name__}: {error}. Replace its BatchNorm layers by "
                            "GroupNorm yourself, or take out of the model what holds files, locks "
                            "or results of an earlier forward") from error


def _fixed(module: nn.Module, name: str, changes: list[Change],
           done: dict[nn.Module, nn.Module]) -> nn.Module:
    # A module used in several places stays one module. Keys are modules and not their ids, because
    # the id of a freed module is used again.
    if module in done:
        return done[module]
    rule = next((make for kind, make in RULES if isinstance(module, kind)), None)
    after = rule(module, name, changes) if rule is not None else module
    done[module] = after
    for key, child in list(after._modules.items()):
        if child is not None:
            after._modules[key] = _fixed(child, f"{name}.{key}" if name else key, changes, done)
    return after


def groups(channels: int) -> int:
    """Returns the largest number of groups, up to 32, that divides `channels` into groups of at
    least four; else 1.
    """
    limit = min(MOST_GROUPS, channels // FEWEST_CHANNELS)
    return max((count for count in range(1, limit + 1) if channels % count == 0), default=1)


def _group_norm(module: nn.Module, name: str, changes: list[Change]) -> nn.Module:
    assert isinstance(module, _BatchNorm)
    if not module.training and module.running_mean is not None:
        return module
    _plain(module, name)
    children = after_the_norm(module)
    if children is None:
        raise _refused(module, name,
                       "a BatchNorm over dimension 1, followed by the modules that it holds")
    norm = nn.GroupNorm(groups(module.num_features), module.num_features, module.eps, module.affine)
    # The same parameters, not copies: so ties to other layers and requires_grad stay.
    if module.affine:
        norm.weight, norm.bias = module.weight, module.bias
    norm.train(module.training)
    after: nn.Module = norm
    if children:
        key = "norm" if "norm" not in children else "group_norm"
        after = nn.Sequential(OrderedDict({key: norm, **children}))
        after.training = module.training
    why = "statistics over the batch mix examples"
    changes.append(Change(name, _text(module), _text(after), why))
    return after


def _instance_norm(module: nn.Module, name: str, changes: list[Change]) -> nn.Module:
    assert isinstance(module, _InstanceNorm)
    if not module.track_running_stats or not module.training:
        return module  # in evaluation mode it applies fixed numbers
    before, tracking = _text(module), copy.deepcopy(module)
    module.track_running_stats, module.running_mean, module.running_var = False, None, None
    module.num_batches_tracked = None
    if not same_outputs(tracking, module):
        raise _refused(module, name, "an InstanceNorm that can do without running statistics")
    why = "running statistics release data without noise"
    changes.append(Change(name, before, _text(module), why))
    return module


def _embedding(module: nn.Module, name: str, changes: list[Change]) -> nn.Module:
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    before = _text(module)
    options = [(module.scale_grad_by_freq, "scale_grad_by_freq counts ids over the batch"),
               (module.sparse, "sparse gradients"),
               (module.max_norm is not None, "max_norm rewrites the rows looked up, without noise")]
    module.scale_grad_by_freq, module.sparse, module.max_norm = False, False, None
    reasons = [reason for is_set, reason in options if is_set]
    if reasons:
        changes.append(Change(name, before, _text(module), "; ".join(reasons)))
    return module


def _plain(module: _BatchNorm, name: str) -> None:
    """Raises CoverageError if the module has what a replacement would lose."""
    if any(len(getattr(module, hooks)) for hooks in HOOKS):
        raise CoverageError(f"{_place(module, name)} has hooks, which a GroupNorm in its place "
                            "would not run. Take them off (remove() of the handle, "
                            "torch.nn.utils.prune.remove) and fix again")
    if module.affine and not all(isinstance(p, nn.Parameter) for p in (module.weight, module.bias)):
        raise CoverageError(f"{_place(module, name)} computes its weight or bias. Make them "
                            "parameters (torch.nn.utils.parametrize.remove_parametrizations) and "
                            "fix again")


def _refused(module: nn.Module, name: str, what: str) -> CoverageError:
    place = f"model.{name}" if name else "the model"
    return CoverageError(f"{_place(module, name)} is not {what}: its forward does more, which a "
                         f"replacement would leave out. Replace {place} yourself by a module "
                         "without batch statistics, or call .eval() on it: it then keeps its "
                         "running statistics and mixes nothing")


def _place(module: nn.Module, name: str) -> str:
    return f"{name or 'the model itself'}, a {type(module).__module__}.{type(module).__qualname__},"


def _text(module: nn.Module) -> str:
    return str(module).replace("\n", " ")


Kinds = type[nn.Module] | tuple[type[nn.Module], ...]
Rule = Callable[[nn.Module, str, list[Change]], nn.Module]
RULES: tuple[tuple[Kinds, Rule], ...] = (
    (_InstanceNorm, _instance_norm), (_BatchNorm, _group_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding))
