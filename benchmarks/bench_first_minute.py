"""CPU seconds from the call of `transform` to the end of the first step, each in its own process.

    python benchmarks/bench_first_minute.py [--before CHECKOUT] [--rows toy gpt12] [--output FILE]

`--before` names a checkout of an older revision, which is measured in the same run, in turns with
this one. CPU seconds are those of the process and of its ended children, so work on a busy machine
counts alike. Importing torch and the library is not counted, nor making the model. `second` is
another process after the first, with the caches that it left.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import Record
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).parent.parent
Batch = tuple[Tensor, Tensor]


class Layer(nn.Module):
    """A layer of a causal transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.before(x)).view(B, T, 3, 4, D // 4).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(B, T, D))
        return x + self.down(functional.gelu(self.up(self.after(x))))


class Tokens(nn.Module):
    """Tokens to logits, by `count` layers."""

    def __init__(self, count: int, width: int = 64, positions: int = 32, words: int = 100) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.zeros(positions, width))
        self.layers = nn.Sequential(*(Layer(width) for _ in range(count)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.words(x) + self.places)))


def per_token(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def toy() -> tuple[nn.Module, Batch, Any]:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    return model, (torch.randn(32, 1, 8, 8), torch.randint(10, (32,))), nn.CrossEntropyLoss()


def resnet(name: str) -> tuple[nn.Module, Batch, Any]:
    import torchvision

    model = getattr(torchvision.models, name)(norm_layer=lambda width: nn.GroupNorm(2, width),
                                              num_classes=10)
    batch = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    return model, batch, nn.CrossEntropyLoss()


def gpt(count: int) -> tuple[nn.Module, Batch, Any]:
    x = torch.randint(100, (8, 32))
    return Tokens(count), (x, x), per_token


MODELS: dict[str, Callable[[], tuple[nn.Module, Batch, Any]]] = {
    "toy": toy, "resnet18": lambda: resnet("resnet18"), "gpt12": lambda: gpt(12),
    "gpt24": lambda: gpt(24), "resnet50": lambda: resnet("resnet50")}


def spent() -> float:
    """Returns CPU seconds of this process and its ended children."""
    return sum(used.ru_utime + used.ru_stime for used in map(
        resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def first_step(name: str, backend: str) -> float:
    """Returns CPU seconds from the call to the end of the first step."""
    import fxperex

    model, batch, loss = MODELS[name]()
    start = spent()
    fxperex.transform(model, batch, loss, backend=backend).step(*batch)
    return spent() - start


def measured(name: str, backend: str, checkout: Path, caches: str) -> float:
    """Returns `first_step` of another process, which runs the library of `checkout`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "FXPEREX_CACHE": caches,
                   "TORCHINDUCTOR_CACHE_DIR": os.path.join(caches, "inductor")}
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--backend", backend]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(ran.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--before", type=Path)
    parser.add_argument("--before-backend", default="auto")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--output", type=Path,
                        default=ROOT / "benchmarks" / "results" / "cpu" / "first_minute.json")
    parser.add_argument("--one", choices=list(MODELS), help=argparse.SUPPRESS)
    parser.add_argument("--backend", default="auto", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(first_step(args.one, args.backend)))
        return
    settings = {"backend": "auto", "before": args.before_backend if args.before else None}
    record = Record(args.output, 60 * args.minutes, settings)
    for name in record.missing(args.rows):
        with tempfile.TemporaryDirectory() as caches:
            row = {"first": measured(name, "auto", ROOT, caches),
                   "second": measured(name, "auto", ROOT, caches)}
        if args.before:
            with tempfile.TemporaryDirectory() as caches:
                row["before"] = measured(name, args.before_backend, args.before, caches)
        record.add(name, row)
        print(f"{name:10} " + ", ".join(f"{k} {v:.1f} s" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
