"""fix: a model that cannot be private -> a copy that can, and the list of what was changed. Never silent.

BatchNorm becomes GroupNorm: normalisation over an example's own channels (Wu and He, arXiv 1803.08494). An affine part is
taken over; running statistics are dropped, for they are data. The caller's model stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from fxperex.errors import ConfigError, CoverageError

GROUPS, LEAST = 32, 4  # at most so many groups, of at least so many channels: a group of one pixel has no variance


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
    """Returns (a copy of `model` in which no layer mixes examples, the Changes made; empty where none was needed).

    Raises ConfigError for anything but a module, CoverageError for a layer whose sizes are not known yet. What only
    the graph shows (`x - x.mean(0)` in a forward) is not seen here; `fxperex.transform` refuses it.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for name, module in model.named_modules():
        if any(is_lazy(p) for p in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            raise CoverageError(f"{name or 'the model'} is lazy and has no sizes yet; run the model once first")
    changes: list[Change] = []
    made = _fixed(copy.deepcopy(model), "", changes, {})
    return made, changes


def _fixed(module: nn.Module, name: str, changes: list[Change], done: dict[int, nn.Module]) -> nn.Module:
    # A module used in several places stays one module.
    if id(module) in done:
        return done[id(module)]
    rule = next((make for kind, make in RULES if isinstance(module, kind)), None)
    made = rule(module, name, changes) if rule is not None else module
    done[id(module)] = made
    for key, child in list(made._modules.items()):
        if child is not None:
            made._modules[key] = _fixed(child, f"{name}.{key}" if name else key, changes, done)
    return made


def groups(channels: int) -> int:
    """Returns the largest divisor of `channels` up to 32 that leaves groups of at least four channels, else 1."""
    return max((d for d in range(1, min(GROUPS, channels // LEAST) + 1) if channels % d == 0), default=1)


def _group_norm(module: nn.Module, name: str, changes: list[Change]) -> nn.Module:
    assert isinstance(module, _BatchNorm)
    made = nn.GroupNorm(groups(module.num_features), module.num_features, module.eps, module.affine)
    if module.affine:  # the very parameters, so that what they are tied to and whether they train stays so
        made.weight, made.bias = module.weight, module.bias
    made.train(module.training)
    changes.append(Change(name, _told(module), _told(made), "statistics over the batch mix examples"))
    return made


def _instance_norm(module: nn.Module, name: str, changes: list[Change]) -> nn.Module:
    assert isinstance(module, _InstanceNorm)
    if module.track_running_stats:
        before = _told(module)
        module.track_running_stats, module.running_mean, module.running_var = False, None, None
        module.num_batches_tracked = None
        changes.append(Change(name, before, _told(module), "running statistics release data without noise"))
    return module


def _embedding(module: nn.Module, name: str, changes: list[Change]) -> nn.Module:
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    before = _told(module)
    found = [(module.scale_grad_by_freq, "scale_grad_by_freq counts ids over the batch"), (module.sparse, "sparse gradients"),
             (module.max_norm is not None, "max_norm rewrites the rows looked up, without noise")]
    module.scale_grad_by_freq, module.sparse, module.max_norm = False, False, None
    if any(wrong for wrong, _ in found):
        changes.append(Change(name, before, _told(module), "; ".join(why for wrong, why in found if wrong)))
    return module


def _told(module: nn.Module) -> str:
    return str(module).replace("\n", " ")


RULES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[nn.Module, str, list[Change]], nn.Module]], ...] = (
    (_InstanceNorm, _instance_norm), (_BatchNorm, _group_norm), ((nn.Embedding, nn.EmbeddingBag), _embedding))
