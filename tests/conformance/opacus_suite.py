"""The tests that the `opacus` package ships, driven from where it is installed.

Its layer tests draw a module and an input with hypothesis and hand both to
`GradSampleHooks_test.run_test`; here that method is replaced by one that writes them down. Two
shapes of input are no tensor with a batch axis: a packed sequence is left out (and counted), and a
list of ids with bag offsets becomes ids padded to the longest bag.
"""

from __future__ import annotations

import copy
import pkgutil
import unittest
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from unittest import mock

import hypothesis
import torch
import torch.nn.functional as F
from case import Case, absolute, curved, plain
from shipped import module as module_of
from torch import Tensor, nn

Handed = tuple[Any, nn.Module, bool]  # (input, module, batch_first)
PACKAGE = "opacus.tests.grad_samples"
KINDS = ("conv1d", "conv2d", "conv3d", "dp_multihead_attention", "dp_rnn", "embedding",
         "embedding_bag", "group_norm", "instance_norm1d", "instance_norm2d", "instance_norm3d",
         "layer_norm", "linear", "rms_norm", "sequence_bias")


def files() -> set[str]:
    """Returns the kinds that the installed package has test files for."""
    names = (info.name for info in pkgutil.iter_modules(module_of(PACKAGE).__path__))
    return {name.removesuffix("_test") for name in names if name.endswith("_test")}


@cache
def handed(kind: str) -> list[Handed]:
    """Returns all that the tests of `kind` hand to `run_test`, under hypothesis seed 0. Hypothesis
    lets them run once.
    """
    given: list[Handed] = []

    def record(_: unittest.TestCase, x: Any, module: nn.Module, batch_first: bool = True, *args:
               Any, **options: Any) -> None:
        given.append((x, copy.deepcopy(module), batch_first))

    base = module_of(f"{PACKAGE}.common").GradSampleHooks_test
    with mock.patch.object(base, "run_test", record), torch.random.fork_rng():
        torch.manual_seed(0)
        for run in _tests(module_of(f"{PACKAGE}.{kind}_test"), base):
            run()
    return given


def _tests(module: Any, base: type) -> Iterator[Callable[[], None]]:
    for cls in list(vars(module).values()):
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base:
            for name in unittest.defaultTestLoader.getTestCaseNames(cls):
                function = getattr(cls, name)
                if hasattr(function, "hypothesis"):
                    yield lambda cls=cls, name=name, function=function: hypothesis.seed(0)(
                        function)(cls(name))


def cases(kind: str) -> list[Case]:
    """Returns the distinct cases of `kind`; every other one with the suite's own loss."""
    made, known = [], set()
    for x, module, batch_first in handed(kind):
        case = _case(kind, x, module, batch_first, absolute if len(made) % 2 else curved)
        if case is not None and str(case) not in known:
            known.add(str(case))
            made.append(case)
    return made


def packed(kind: str) -> int:
    """Returns how many of the inputs handed over are packed sequences: no tensor, no batch axis."""
    return sum(isinstance(x, nn.utils.rnn.PackedSequence) for x, *_ in handed(kind))


def _case(kind: str, x: Any, module: nn.Module, batch_first: bool,
          loss: Callable[[Tensor], Tensor]) -> Case | None:
    if isinstance(x, nn.utils.rnn.PackedSequence):
        return None
    if isinstance(x, tuple):
        return Case(kind, module, (_padded(*x, module.num_embeddings), ), bags, loss=loss,
                    note=module.mode)
    if batch_first:
        return Case(kind, module, (x,), loss=loss)
    return Case(kind, module, (x.transpose(0, 1).contiguous(), ), second, 1, loss,
                note="batch second")


def second(module: nn.Module, x: Tensor) -> Any:
    return plain(module, x.transpose(0, 1))


def _padded(ids: Tensor, offsets: Tensor, entries: int) -> Tensor:
    """Bags as rows `[B, T]`, filled up with the id `entries`, one past the table."""
    bags = torch.tensor_split(ids, offsets[1:].tolist())
    return nn.utils.rnn.pad_sequence(list(bags), batch_first=True, padding_value=entries)


def bags(module: nn.EmbeddingBag, ids: Tensor) -> Tensor:
    """The module's bags with filled-up rows: the table has one more entry, which is left out of
    every bag.
    """
    table = F.pad(module.weight, (0, 0, 0, 1))
    return F.embedding_bag(ids, table, mode=module.mode, padding_idx=module.num_embeddings)
