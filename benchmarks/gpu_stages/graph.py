"""A recorded step stays what it was recorded from: under new batches, seeds, memory and flags."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import fxperex
from fxperex.compiler.cuda_graph import host_waits
from fxperex.testing import clipped, error, loop
from gpu_stages.rows import AbsentError, Rows
from gpu_stages.setting import Setting, precision
from gpu_stages.small_models import ROWS, SMALL, curved

CLIP, LIMIT = 0.5, 1e-5
STEPS = 50
Model = tuple[nn.Module, tuple[Tensor, ...]]


def run(setting: Setting, part: str, rows: Rows) -> None:
    for check in CHECKS[part]:
        with precision("float32"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.run(check.__name__, _judged, check, setting)


def _judged(check: Callable[[Setting], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """Returns the answers; those that are False, or texts of what is amiss, are wrong."""
    answers = check(setting)
    return answers | {"wrong": [name for name, answer in answers.items() if answer is False]}


def _conv(setting: Setting) -> Model:
    torch.manual_seed(0)
    return SMALL["conv"].make().to(setting.device), SMALL["conv"].batch(ROWS, setting.device)


def _step(model: nn.Module, batch: tuple[Tensor, ...], setting: Setting,
          clip: float = CLIP) -> fxperex.PerExampleModule:
    return fxperex.transform(model, batch, forward=curved, clip=clip, backend=setting.backend)


def _sums(private: fxperex.PerExampleModule, batch: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([s.double().flatten() for s in private.sums(*batch)[1]])


def _truth(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    total, _ = clipped(loop(model, curved, batch), CLIP)
    return torch.cat([g.flatten() for g in total.values()])


def batches(setting: Setting) -> dict[str, Any]:
    """Two batches, a short one, an empty one, one with a row that is not a number: each is itself,
    and the last is unharmed."""
    model, batch = _conv(setting)
    private = _step(model, batch, setting)
    different = SMALL["conv"].batch(ROWS, setting.device)
    answers: dict[str, Any] = {"recorded": private.backend == setting.backend}
    for name, rows in (
        ("first", batch),
        ("another", different),
        ("short", (different[0][:2],)),
        ("first again", batch),
    ):
        answers[name] = error(_sums(private, rows), _truth(model, rows)) <= LIMIT
    answers["they differ"] = not torch.equal(_sums(private, batch), _sums(private, different))
    answers["empty adds nothing"] = not _sums(private, (batch[0][:0],)).any()
    broken = batch[0].clone()
    broken[1] = float("nan")
    result, sums = private.sums(broken)
    remaining = (torch.cat([broken[:1], broken[2:]]),)
    answers["a NaN row is dropped"] = result.dropped == 1
    answers["and alone"] = (
        error(torch.cat([s.double().flatten() for s in sums]), _truth(model, remaining)) <= LIMIT
    )
    answers["nothing of it stays"] = error(_sums(private, batch), _truth(model, batch)) <= LIMIT
    return answers


def dropout(setting: Setting) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 8)).to(setting.device)
    batch = (torch.randn(ROWS, 32, device=setting.device),)
    private = _step(model, batch, setting)
    torch.manual_seed(7)
    before, after = _sums(private, batch), _sums(private, batch)
    torch.manual_seed(7)
    return {"differs from step to step": not torch.equal(before, after),
            "repeats under a seed": torch.equal(before, _sums(private, batch))}


def moved(setting: Setting) -> dict[str, Any]:
    """Parameters given new memory, and new values where they lie, are read where they are."""
    model, batch = _conv(setting)
    private = _step(model, batch, setting)
    with torch.no_grad():
        for p in model.parameters():
            p.data = 1.5 * p.data
    moved_right = error(_sums(private, batch), _truth(model, batch)) <= LIMIT
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    return {
        "new memory": moved_right,
        "new values": error(_sums(private, batch), _truth(model, batch)) <= LIMIT,
    }


def constant(setting: Setting) -> dict[str, Any]:
    """Bytes that torch holds after 3 steps are those after STEPS more."""
    if not setting.on_gpu:
        raise AbsentError("a GPU's memory")
    model, batch = _conv(setting)
    private = _step(model, batch, setting)
    held = []
    for count in (3, STEPS):
        for _ in range(count):
            private.step(*batch)
        setting.wait()
        held.append(torch.cuda.memory_allocated())
    return {"bytes": held, "constant": held[0] == held[1]}


def flags(setting: Setting) -> dict[str, Any]:
    """TF32 allowed after the step was made: what it emits stays within the bound, and what it
    was."""
    model, batch = _conv(setting)
    private = _step(model, batch, setting, 1e-2)
    before = _sums(private, batch)
    with precision("tf32"):
        after = _sums(private, batch)
        single = float(_sums(private, (batch[0][:1],)).norm())
    return {
        "off by": error(after, before),
        "near": error(after, before) <= 1e-2,
        "single": single / 1e-2 - 1,
        "bound": single <= 1e-2 * (1 + 2.0**-20),
    }


def package(setting: Setting) -> dict[str, Any]:
    model, batch = _conv(setting)
    private = _step(model, batch, setting)
    path = private.save(setting.cache / f"step_{setting.device.type}.pt2")
    loaded = fxperex.load(path, model)
    return {"same": error(_sums(loaded, batch), _sums(private, batch)) <= LIMIT}


class Gathered(nn.Module):
    """A map whose positions are put in another order by integer indices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("order", torch.arange(5).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x)[:, self.order])


def gathered(setting: Setting) -> dict[str, Any]:
    return _waits(Gathered().to(setting.device), (torch.randn(ROWS, 5, 8, device=setting.device),))


def gpt2(setting: Setting) -> dict[str, Any]:
    transformers = import_module("transformers")
    config = transformers.GPT2Config(
        n_layer=1,
        n_embd=32,
        n_head=2,
        vocab_size=50,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).to(setting.device)
    ids = torch.randint(50, (ROWS, 16), device=setting.device)
    return _waits(
        model, (ids,), lambda model, ids: model(input_ids=ids).logits.flatten(1).sin().sum(1)
    )


def swin(setting: Setting) -> dict[str, Any]:
    models = import_module("torchvision.models")
    model = models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5,
                                   stochastic_depth_prob=0.0)
    return _waits(model.to(setting.device), (torch.randn(ROWS, 3, 32, 32, device=setting.device),))


def _waits(model: nn.Module, batch: tuple[Tensor, ...], forward: Any = curved) -> dict[str, Any]:
    private = fxperex.transform(model, batch, forward=forward, backend="eager")
    waits = host_waits(private.step_graph)
    return {"waits": waits, "gets a graph": not waits}


CHECKS: dict[str, tuple[Callable[[Setting], dict[str, Any]], ...]] = {
    "batches": (batches, dropout, moved), "memory": (constant, flags), "package": (package,),
    "index": (gathered, gpt2, swin)}
