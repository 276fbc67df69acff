"""Names of operators without their overload: "aten.add" of `aten.add.Tensor`."""

from __future__ import annotations

from typing import Any

from torch import fx


def packet_name(target: Any) -> str:
    """Returns "aten.add" for `aten.add.Tensor`; for what is no operator, its text."""
    return str(getattr(target, "overloadpacket", target))


def packet(node: fx.Node) -> str:
    """Returns "add" for a node of `aten.add.Tensor`, "mylib.gate" for one of another library."""
    return packet_name(node.target).removeprefix("aten.")
