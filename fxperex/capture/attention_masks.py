"""Attention masks whose values torch would look at: not while a program is captured.

`nn.TransformerEncoder` and its kin compare a given mask with the causal one, to pass `is_causal`
on. That is a hint to the kernel and the mask holds either way; but a branch on the mask's values is
control flow on data, which no captured program can have. Captured, a mask is taken as it stands
unless the caller says `is_causal=True`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.nn.modules import transformer


def _hint(mask: object, is_causal: bool | None = None, size: object = None) -> bool:
    return is_causal is True


@contextlib.contextmanager
def ignore_mask_values() -> Iterator[None]:
    """Within it no transformer of torch's compares masks."""
    original = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = _hint
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = original
