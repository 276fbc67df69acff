"""Can torch.func differentiate a node for many examples at once? Tried, before a plan counts on it.

Operations of a user may lack what `torch.func.vmap(vjp)` needs: a `torch.library.custom_op` whose
derivative is an ordinary autograd function, code that reads values. Such a site is served by
another strategy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxperex.analysis.site_values import values_of
from fxperex.contract import ClosedForm, HasGram
from fxperex.layers.differentiate import by_vmap
from fxperex.registry import kinds
from fxperex.sites import Site


def refusal(site: Site, node: fx.Node, twin: fx.Node, axes: Mapping[str, Any]) -> str:
    """Returns why torch.func cannot serve `site`, '' if it can. Nothing runs: values are fake.

    Only nodes that the library has not tested are tried: those of kinds without a formula, and
    operations that are not ATen's. `twin` is the node at one example more.
    """
    tested = isinstance(kinds()[site.kind], ClosedForm | HasGram) and site.op.startswith("aten.")
    if tested:
        return ""
    outs = [v for v in pytree.tree_leaves(node.meta["val"]) if isinstance(v, Tensor)]
    grads = [v if v.is_floating_point() or v.is_complex() else None for v in outs]
    values = values_of(site, node, lambda n: n.meta["val"], axes, grads, (node, twin),
                       (site.rows, site.rows))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            by_vmap(values)
    except Exception as error:  # whatever the operation's own code raises
        text = str(error).strip() or type(error).__name__
        return text.splitlines()[0]
    return ""
