"""From what `Accelerator.prepare` returned to what a private step takes.

accelerate wraps the optimizer, and under mixed precision the model's forward and the gradients. A
private step needs the user's own objects: it scales no loss, and the noise is for unscaled sums.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxperex.errors import ConfigError

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Unwrapped:
    """model, optimizer: the user's own. autocast: for `fxperex.transform`, the precision that the
    accelerator was asked for; None for none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    autocast: torch.dtype | None


def unwrap(accelerator: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> Unwrapped:
    """Returns what `accelerator.prepare` was given, to train by `fxperex.transform` and
    `fxperex.privacy.PrivacyEngine`.

    accelerate takes its own mixed precision off the model, which `autocast=` brings back. Raises
    ConfigError for an accelerator that accumulates gradients, for several processes, and for a
    precision that no step can have.
    """
    library = _library()
    if not isinstance(accelerator, library.Accelerator):
        raise ConfigError("the first argument must be an accelerate.Accelerator; got "
                          f"{type(accelerator).__name__}")
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(f"the accelerator accumulates {accelerator.gradient_accumulation_steps} "
                          "batches, and a private step is one draw. Leave "
                          "gradient_accumulation_steps out; transform(physical_batch=) divides a "
                          "draw")
    if accelerator.num_processes != 1:
        raise ConfigError(f"the accelerator has {accelerator.num_processes} processes; over several"
                          " ranks start torch.distributed and use fxperex.privacy.PrivacyEngine "
                          "with a model that was not prepared")
    precision = str(accelerator.mixed_precision)
    if precision not in AUTOCAST:
        raise ConfigError(f"mixed_precision {precision!r} has no bound of its rounding; a private "
                          f"step takes {', '.join(AUTOCAST)}")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False, keep_torch_compile=False)
    return Unwrapped(plain, unwrapped_optimizer(optimizer), AUTOCAST[precision])


def unwrapped_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Returns the optimizer in accelerate's wrapper; any other as it is. Raises ConfigError."""
    if isinstance(optimizer, _library().optimizer.AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError("optimizer must be a torch.optim.Optimizer, prepared or not; got "
                          f"{type(optimizer).__name__}")
    return optimizer


def _library() -> Any:
    try:
        return importlib.import_module("accelerate")
    except ImportError as e:
        raise ConfigError("this needs the package accelerate: pip install accelerate") from e
