"""Batches of any structure: mappings for model(**batch), tuples in tuples, and constants."""

from __future__ import annotations

import functools
import re
from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.cli import main
from fxperex.errors import FxperexError, PackageError, ShapeError
from fxperex.runtime import package
from fxperex.runtime.manifest import check_manifest
from fxperex.testing import clipped, error, loop

B, T = 4, 5


class Reader(nn.Module):
    """Takes its batch by name and returns a mapping with its loss, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor | None = None, scale: float = 1.0,
                flag: bool | None = None) -> OrderedDict[str, Any]:
        pooled = (self.embedding(ids) * mask[..., None]).sum(1)
        scores = self.head(pooled) * scale
        loss = None if labels is None else F.cross_entropy(scores, labels)
        return OrderedDict(loss=loss, scores=scores)


class Pairs(nn.Module):
    """Takes a tuple of a tensor and a mapping of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, pair: tuple[Tensor, Mapping[str, list[Tensor]]]) -> Tensor:
        return self.layer(pair[0] * pair[1]["more"][0])


def named(rows: int = B, seed: int = 0, **constants: Any) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, (rows, T), generator=g)
    mask = (torch.rand(rows, T, generator=g) > 0.3).float()
    return {"ids": ids, "mask": mask, "labels": torch.randint(3, (rows,), generator=g)} | constants


def nested(rows: int = B) -> tuple[Any, Tensor]:
    more = {"more": [torch.randn(rows, 4)]}
    return (torch.randn(rows, 4), more), torch.arange(rows) % 3


def model(kind: Callable[[], nn.Module] = Reader) -> nn.Module:
    torch.manual_seed(3)
    return kind()


def private_step(batch: Any = None, loss: Any = None, kind: Callable[[], nn.Module] = Reader,
                 **options: Any) -> fxperex.PerExampleModule:
    return fxperex.transform(model(kind), named() if batch is None else batch, loss, clip=0.3,
                             backend="eager", **options)


@functools.cache
def usual() -> fxperex.PerExampleModule:
    """The step of most tests, captured once."""
    return private_step()


def truth(batch: dict[str, Any], scale: float = 1.0) -> dict[str, Tensor]:
    def forward(m: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(m(ids, mask)["scores"] * scale, labels)

    return loop(model(), forward, tuple(x for x in batch.values() if isinstance(x, Tensor)))


def agrees(private: fxperex.PerExampleModule, batch: Any, exact: dict[str, Tensor]) -> None:
    """Step, sums, norms and gradients of `batch` are those of the loop."""
    total, norms = clipped(exact, 0.3)
    private.step(batch)
    for name, p in private.parameters.items():
        assert p.grad is not None and error(p.grad, total[name]) < 1e-5
        p.grad = None
    assert torch.allclose(private.norms(batch), norms, rtol=1e-5)
    assert all(error(g, exact[name]) < 1e-5 for name, g in private.gradients(batch).items())


def test_a_mapping_is_given_to_the_model_by_name_and_its_loss_taken() -> None:
    for rows in (B, B + 3, 1):
        batch = named(rows, seed=rows)
        agrees(usual(), batch, truth(batch))
    assert len(usual().sums(named(0))[0].losses) == 0


def test_any_mapping_in_any_order_is_the_same_batch() -> None:
    batch = named(seed=5)
    for wrapped in (UserDict, OrderedDict, lambda b: dict(reversed(b.items()))):
        assert torch.equal(usual().norms(wrapped(batch)), usual().norms(batch))
    turned = UserDict(reversed(named().items()))
    agrees(private_step(turned), batch, truth(batch))


def test_a_loss_of_a_mapping_gets_output_and_batch() -> None:
    def loss(output: Any, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(output["scores"], batch["labels"])

    batch = named(seed=6)
    agrees(private_step(loss=loss), batch, truth(batch))
    private = private_step(forward=lambda m, b: loss(m(b["ids"], b["mask"]), b))
    agrees(private, batch, truth(batch))


def test_what_is_no_tensor_in_a_mapping_is_a_constant_and_is_told() -> None:
    private, batch = private_step(named(scale=2.0, flag=None)), named(seed=7, scale=2.0)
    agrees(private, batch, truth(batch, 2.0))
    text = private.explain()
    assert "batch['scale'] = 2.0, batch['flag'] = None" in text and "constant" in text
    with pytest.raises(ShapeError, match=r"batch\['scale'\] is a constant .* 2.0.* 3.0"):
        private.step(named(scale=3.0))


def test_tuples_and_mappings_inside_a_tuple() -> None:
    private, batch = private_step(nested(), F.cross_entropy, Pairs), nested(B + 1)
    (x, more), y = batch
    exact = loop(model(Pairs), lambda m, a, b, c: F.cross_entropy(m((a, {"more": [b]})), c),
                 (x, more["more"][0], y))
    agrees(private, batch, exact)
    assert torch.equal(private.norms(*batch), private.norms(batch))
    assert private.structure.names == ("batch[0][0]", "batch[0][1]['more'][0]", "batch[1]")


def test_a_tuple_may_be_handed_over_whole() -> None:
    x, y = torch.randn(B, 4), torch.arange(B) % 3
    private = fxperex.transform(nn.Linear(4, 3), (x, y), F.cross_entropy, backend="eager")
    assert torch.equal(private.norms((x, y)), private.norms(x, y))


class WithLoss(nn.Linear):
    """Returns its loss as an attribute of its output."""

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return type("Output", (), {"loss": out.square().mean()})()


def test_the_loss_may_be_an_attribute_of_the_output_of_a_tuple_too() -> None:
    x = torch.randn(B, 4)
    private = fxperex.transform(WithLoss(4, 3), (x,), backend="eager")
    assert private.norms(x).shape == (B,)


Refusal = tuple[Callable[[], object], str]
REFUSED: dict[str, Refusal] = {
    "an empty mapping": (lambda: private_step({}), "mapping of them"),
    "a mapping without a tensor": (lambda: private_step({"flag": True}), "no tensor"),
    "a list of numbers": (lambda: private_step(named() | {"labels": [1, 2, 0, 1]}),
                          r"batch\['labels'\]\[0\] is 1"),
    "an object": (lambda: private_step(named(flag=object())), r"batch\['flag'\] is a object"),
    "a number in a tuple": (lambda: private_step((torch.randn(4, 4), 3), F.cross_entropy),
                            r"batch\[1\] is 3"),
    "sizes that differ": (lambda: private_step(named() | {"labels": torch.zeros(3).long()}),
                          "numbers of examples"),
    "no dimensions": (lambda: private_step(named(scale=torch.tensor(2.0))),
                      r"batch\['scale'\] has no dimensions"),
    "a sparse entry": (lambda: private_step(named() | {"mask": torch.ones(B, T).to_sparse()}),
                       r"batch\['mask'\] is a sparse"),
    "a tuple for a mapping": (lambda: usual().step(*named().values()),
                              r"as a mapping, step\(batch\)"),
    "a mapping for a tuple": (lambda: private_step(nested(), F.cross_entropy, Pairs).step(named()),
                              "as a tuple of tensors"),
    "an entry is missing": (lambda: usual().step({"ids": named()["ids"]}),
                            r"lacks batch\['mask'\], batch\['labels'\]"),
    "an entry too many": (lambda: usual().step(named(kind=torch.ones(B))),
                          r"besides batch\['kind'\]"),
    "another shape": (lambda: usual().step(named() | {"mask": torch.ones(B, T + 1)}),
                      r"batch\['mask'\] is \[B, 6\]"),
    "another dtype": (lambda: usual().step(named() | {"mask": torch.ones(B, T).double()}),
                      r"batch\['mask'\] is .*float64"),
    "a number for a tensor": (lambda: usual().step(named() | {"labels": 3}),
                              r"batch\['labels'\] must be a tensor"),
    "True for 1": (lambda: private_step(named(scale=1.0)).step(named(scale=True)), "constant"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_batch_is_refused_by_the_name_of_its_entry(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(ShapeError, match=words):
        call()


def test_a_product_of_two_dtypes_names_the_entry() -> None:
    def forward(m: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return m.head(batch["x"]).mean()  # type: ignore[operator,union-attr]

    with pytest.raises(FxperexError, match=r"batch\['x'\] is torch.float64"):
        private_step({"x": torch.randn(B, 4).double()}, forward=forward)


class Small(nn.Linear):
    def forward(self, x: Tensor, scale: float) -> Any:
        return {"loss": super().forward(x).square().mean() * scale}


def test_a_file_says_the_structure_of_a_batch(tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    # What compiling writes is not looked at here, and takes long.
    monkeypatch.setattr(package, "_compile", lambda graph, inputs, path: path.write_bytes(b"code"))
    small, batch = Small(4, 3), {"x": torch.randn(B, 4), "scale": 2.0}
    path = fxperex.transform(small, batch, backend="eager").save(tmp_path / "step.pt2")
    manifest = package.read(path)[0]
    assert manifest["structure"] == {"names": ["batch['x']"], "mapping": True,
                                     "constants": {"batch['scale']": 2.0}}
    check_manifest(manifest, small, path)
    manifest["structure"]["names"].append("more")
    with pytest.raises(PackageError, match="other tensors"):
        check_manifest(manifest, small, path)


@pytest.mark.nightly
def test_a_saved_step_takes_the_same_mapping(tmp_path: Path) -> None:
    small, batch = Small(4, 3), {"x": torch.randn(B, 4), "scale": 2.0}
    private = fxperex.transform(small, batch, backend="eager")
    path = private.save(tmp_path / "step.pt2")
    loaded = fxperex.load(path, small)
    assert torch.allclose(loaded.step(batch).norms, private.norms(batch), rtol=1e-5)
    with pytest.raises(ShapeError, match=r"lacks batch\['x'\]"):
        loaded.step({"y": batch["x"]})
    with pytest.raises(ShapeError, match="is a constant"):
        loaded.step(batch | {"scale": 1.0})


def with_batch() -> tuple[nn.Module, dict[str, Any]]:
    return Reader(), named()


def with_loss() -> tuple[nn.Module, Any, Any]:
    return Pairs(), nested(), F.cross_entropy


@pytest.mark.parametrize("factory", ["with_batch", "with_loss"])
def test_a_command_takes_the_batch_and_loss_that_a_factory_returns(
        factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{__name__}:{factory}"]) == 0
    assert re.search(r"(embedding|layer)\.weight", capsys.readouterr().out)
    assert main(["compare", f"{__name__}:{factory}", "--only", "vmap"]) == 0
    assert "vmap" in capsys.readouterr().out
