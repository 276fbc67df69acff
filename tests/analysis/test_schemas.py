"""Rules read arguments by name, and every name is one that the operators' schemas have: no position
is ever confused.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import fx

from fxperex.analysis.rules import RULES
from fxperex.analysis.rules.table import READS
from fxperex.analysis.state import Context, readable

OPS = sorted(name for name in RULES if name.startswith("aten."))
# Ways in that no graph of tensors holds: names of dimensions, a list of anything.
UNGRAPHED = ("Dimname", "...")


def overloads(name: str) -> Iterator[torch._ops.OpOverload]:
    """The overloads of an operator that a functional graph can hold: they return tensors and write
    nothing given.
    """
    packet = getattr(torch.ops.aten, name.removeprefix("aten."))
    # Not `packet.__getattr__`: it would make overloads anew, and what was keyed by the old ones be
    # lost.
    for overload in (getattr(packet, overload) for overload in packet.overloads()):
        schema = overload._schema
        tensors = any("Tensor" in str(r.type) for r in schema.returns)
        if tensors and not any(a.is_out for a in schema.arguments) and not any(k in str(schema)
                                                                               for k in UNGRAPHED):
            yield overload


@pytest.mark.parametrize("name", OPS)
def test_every_name_that_a_rule_reads_is_in_every_schema(name: str) -> None:
    known = [{a.name for a in overload._schema.arguments} for overload in overloads(name)]
    assert known, f"{name} has no overload that a graph can hold"
    for read in READS[name]:
        names, optional = readable(read)
        for schema in known:
            present = schema & set(names)
            assert len(present) == 1 or (optional and not present), (read, schema)
    # What may be absent is present somewhere in the family of operators that share the rule.
    family = [o for other in OPS if RULES[other] is RULES[name] for o in overloads(other)]
    everything = {a.name for overload in family for a in overload._schema.arguments}
    assert all(set(readable(read)[0]) & everything for read in READS[name])


def test_there_is_no_position_to_read() -> None:
    """Torch's own mistake to make: argument 5 is `training` of one batch norm and `eps` of
    another.
    """
    graph = fx.Graph()
    target, x = torch.ops.aten._native_batch_norm_legit.no_stats, graph.placeholder("x")
    node = graph.call_function(target, (x, None, None, True, 0.1, 0.0))
    context = Context(node, node, {}, 4, 5, reads=frozenset({"training?", "training"}))
    assert context.arg("training") is True
    with pytest.raises(LookupError, match="does not declare"):
        context.arg("eps")
    with pytest.raises((TypeError, LookupError, AttributeError)):
        context.arg(5)  # type: ignore[arg-type]


def test_an_argument_that_is_not_given_has_the_schemas_default() -> None:
    graph = fx.Graph()
    node = graph.call_function(torch.ops.aten.mode.default, (graph.placeholder("x"),))
    assert Context(node, node, {}, 4, 5).arg("dim") == -1


def test_what_a_rule_does_not_declare_it_cannot_read() -> None:
    graph = fx.Graph()
    node = graph.call_function(torch.ops.aten.sum.default, (graph.placeholder("x"),))
    context = Context(node, node, {}, 4, 5)
    assert context.arg("dim?", 7) == 7
    with pytest.raises(LookupError, match="has no argument 'dims'"):
        context.arg("dims")
