"""What a saved step must answer: inputs drawn from a seed, and the eager graph's outputs on them,
recorded when it was saved.

A loaded step has no eager graph to be compared with. So the file says what that gave for parameters
and rows which anybody can
draw again: no row of anybody's data is in the file, only between which numbers they lay. Sums are
as large as the model, and are recorded as a few sums of their entries with random signs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fxperex.clipping import Clip
from fxperex.compiler import Check
from fxperex.config import SLACK
from fxperex.errors import PackageError
from fxperex.runtime.batches import Spec
from fxperex.runtime.signature import StepSignature

Range = tuple[float, float]
KINDS = ("ordinary rows", "rows of which some are masked", "one row")
SIGNS = 4  # sums with random signs of each large output
LOOSE = 4.0  # such a sum of an error is rarely larger than so many times its norm


@dataclass(frozen=True)
class Recorded:
    """seed and ranges: what is drawn; outputs: for each kind of rows each output, or its sums;
    allowed: how far off it may be.

    parameters: {name: range}; batch: a range for each tensor; buffers: as they were, they hold no
    data.
    """

    seed: int
    rows: int
    parameters: dict[str, Range]
    buffers: dict[str, Tensor]
    batch: list[Range]
    outputs: list[list[Tensor]]
    allowed: list[list[Tensor]]
    manifest: str  # digest of the manifest that these belong to

    def to_plain(self) -> dict[str, Any]:
        """Returns what `torch.save` keeps and `torch.load(weights_only=True)` reads."""
        return asdict(self)


Like = dict[str, Tensor]  # the model's parameters by name: their shapes, dtypes and device


def record(check: Check, like: Like, buffers: Like, batch: Sequence[Range],
           signature: StepSignature, manifest: str, seed: int = 0) -> Recorded:
    """Returns the Recorded of `check`'s eager graph. Raises PackageError if it gives no finite
    numbers for any rows drawn.
    """
    parameters = {n: _box(p) for n, p in like.items()}
    spec, rows = signature.spec, signature.rows
    for ranges in _candidates(batch, spec):
        copies = {n: b.detach().cpu().clone() for n, b in buffers.items()}
        tried = Recorded(seed, rows, parameters, copies, ranges, [], [], manifest)
        try:
            for kind in KINDS:
                with _seeded(seed, spec):
                    outputs, allowed = check.tolerated(inputs(tried, kind, like, signature))
                if not all(bool(torch.isfinite(x).all()) for x in outputs):
                    raise ValueError("its outputs are not finite")
                tried.outputs.append(_short(outputs, check.by_row, seed))
                tried.allowed.append([
                    (a if i < check.by_row else LOOSE * a).cpu() for i, a in enumerate(allowed)
                ])
            return tried
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            reason = error
    raise PackageError("the step cannot be saved: on no rows drawn between the values that "
                       "transform was shown does the eager step give finite numbers to record "
                       f"({reason})") from reason


def inputs(recorded: Recorded, kind: str, like: Like, signature: StepSignature) -> list[Tensor]:
    """Returns the step's inputs on the recorded parameters and one kind of rows, the same for
    everybody.
    """
    generator = torch.Generator().manual_seed(recorded.seed)
    named: dict[str, Tensor] = {}
    for name, p in like.items():
        low, high = recorded.parameters[name]
        named[name] = (low + (high - low) * torch.rand(p.shape, generator=generator)).to(
            p.device, p.dtype)
    device = signature.spec[0][2]
    named |= {n: b.to(device) for n, b in recorded.buffers.items()}
    places = torch.arange(recorded.rows)
    count = {KINDS[0]: recorded.rows, KINDS[1]: max(recorded.rows // 2, 1), KINDS[2]: 1}[kind]
    rows = drawn(recorded, signature.spec)
    return signature.assemble(named, rows, (places < count).to(device))


def drawn(recorded: Recorded, spec: Spec) -> tuple[Tensor, ...]:
    """Returns the recorded rows: legal ones, since the eager step ran on them."""
    generator, sums = torch.Generator().manual_seed(recorded.seed + 1), []
    for (low, high), (shape, dtype, device) in zip(recorded.batch, spec, strict=True):
        size = (recorded.rows, *shape)
        real = dtype.is_floating_point or dtype.is_complex
        x = low + (high - low) * torch.rand(size, generator=generator) if real else \
            torch.randint(int(low), int(high) + 1, size, generator=generator)
        sums.append(x.to(device, dtype))
    return tuple(sums)


def compare(recorded: Recorded, run: Callable[..., Sequence[Any]], like: Like,
            signature: StepSignature) -> None:
    """Raises PackageError unless `run` gives what was recorded, and clips by the rule."""
    names, order = signature.names, signature.trained
    if any(len(outputs[0]) != recorded.rows
           for outputs in recorded.outputs) or len(recorded.outputs) != len(KINDS):
        raise PackageError("the file's recorded outputs are not those of as many rows as its step "
                           "takes; the file was changed")
    for kind, expected, allowed in zip(KINDS, recorded.outputs, recorded.allowed, strict=True):
        args = inputs(recorded, kind, like, signature)
        with torch.no_grad(), _seeded(recorded.seed, signature.spec):
            outputs = list(run(*args))
        if len(outputs) != len(names):
            raise PackageError(f"the saved step has {len(outputs)} outputs, and its file names "
                               f"{len(names)}")
        odd = next(
            (n for n, s in zip(order, outputs[3:], strict=False) if s.shape != like[n].shape), None)
        if odd is not None:
            raise PackageError("the saved code has a sum of another shape than parameter "
                               f"{odd!r}; the file was changed")
        short = _short(outputs, 3, recorded.seed)
        for name, a, b, limit in zip(names, expected, short, allowed, strict=True):
            if a.shape != b.shape or not bool(((a.double() - b.double()).abs() <= limit).all()):
                far = "its shape"
                if a.shape == b.shape:
                    far = f"{float((a.double() - b.double()).abs().amax()):.2g}"
                raise PackageError("the saved code does not give what was recorded when it was "
                                   f"saved: {name} on {kind} is off by {far}. Transform and save "
                                   "again")
        _clipped(outputs, signature.clip, kind, len(order))


def _clipped(outputs: Sequence[Tensor], clip: Clip, kind: str, trained: int) -> None:
    """The factors of the file's rule are those that the code took; one row's sum is within its
    sensitivity.
    """
    norms, factors = outputs[1], outputs[2]
    if factors.dim() == 1:
        expected_factors = clip.apply(norms[:, None])[:, 0]
        counted = factors != 0
        if not torch.allclose(factors[counted], expected_factors[counted], rtol=1e-6):
            raise PackageError(f"the file says {clip!r}, and its code clips otherwise: the "
                               f"factors of norms {norms.tolist()[:3]} are "
                               f"{factors.tolist()[:3]}. The file was changed")
    total = sum(
        float(torch.linalg.vector_norm(s, dtype=torch.float64))**2
        for s in outputs[3:3 + trained])**0.5
    if kind == KINDS[2] and not total <= clip.sensitivity * (1 + SLACK):
        raise PackageError(f"the file says {clip!r}, and its code gives one row a sum of length "
                           f"{total:.9g}. The file was changed")


def _short(outputs: Sequence[Tensor], by_row: int, seed: int) -> list[Tensor]:
    """Rows as they are, other outputs as SIGNS sums with random signs, float64, on the CPU."""
    return [
        o.detach().cpu() if i < by_row else _signed(o.detach(), seed + i)
        for i, o in enumerate(outputs)
    ]


def _signed(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    flat = x.reshape(-1).double()
    sums = []
    for _ in range(SIGNS):
        signs = torch.randint(0, 2, flat.shape, generator=generator,
                              dtype=torch.int8).to(flat.device)
        sums.append((flat * (2 * signs - 1)).sum().cpu())
    return torch.stack(sums)


def _box(p: Tensor) -> Range:
    """Between which numbers a parameter's entries are drawn: as spread as they are, and never
    beyond the outermost of them.
    """
    x = p.detach().float()
    if not x.numel():
        return 0.0, 0.0
    mean, half = float(x.mean()), 3**0.5 * float(x.std(correction=0))
    return max(float(x.amin()), mean - half), min(float(x.amax()), mean + half)


def _candidates(batch: Sequence[Range], spec: Spec) -> list[list[Range]]:
    """Ranges to draw rows from: all shown values; for whole numbers also the largest alone, the
    smallest alone, zero.
    """
    def each(change: Callable[[Range], Range]) -> list[Range]:
        return [
            r if dtype.is_floating_point else change(r)
            for r, (_, dtype, _) in zip(batch, spec, strict=True)
        ]

    # A negative one may be a mark ("no label"), and what lies between is then no value.
    plain = each(lambda r: (0.0, r[1]) if r[0] < 0 <= r[1] else r)
    single = [
        each(lambda r: (r[1], r[1])),
        each(lambda r: (r[0], r[0])),
        each(lambda r: (0.0, 0.0))
    ]
    marked = any(low < 0 and not dtype.is_floating_point
                 for (low, _), (_, dtype, _) in zip(batch, spec, strict=True))
    # After a failed assertion on a GPU nothing runs any more: there only what was shown is tried.
    return single[:1] if spec[0][2].type == "cuda" and marked else [plain, *single]


@contextlib.contextmanager
def _seeded(seed: int, spec: Spec) -> Iterator[None]:
    """Within it torch's generators start at `seed`; after it they are as they were."""
    with torch.random.fork_rng(devices=[spec[0][2]] if spec[0][2].type == "cuda" else []):
        torch.manual_seed(seed)
        yield
