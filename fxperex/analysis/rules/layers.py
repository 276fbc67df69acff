"""Whole layers: convolution, normalisation, pooling, attention, recurrence, losses."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from fxperex.analysis.rules.contract import both
from fxperex.analysis.rules.pointwise import meet
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, Reduced, State
from fxperex.registry import BatchAxis


def _leading(context: Context, below: int, what: str) -> State:
    """The axis of argument 0 must lie before the last `below` dimensions, on which the layer works."""
    axis = context.axis(0)
    rank = len(context.shape(context.arg(0)))
    if axis is not None and axis.dim >= rank - below:
        raise Mixes(f"{what} runs over dimension {axis.dim}, the batch")
    value = context.node.meta["val"]
    return tuple(axis for _ in value) if isinstance(value, list | tuple) else axis


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.conv_transpose1d", "aten.conv_transpose2d",
      "aten.conv_transpose3d", "aten.convolution")
def convolution(context: Context) -> State:
    if context.axis(1) is not None or context.axis(2) is not None:
        raise Mixes("its weight depends on the batch")
    axis = context.axis(0)
    if len(context.shape(context.arg(0))) != len(context.shape(context.arg(1))):
        raise Mixes("its input is one image without a batch dimension, so the batch would be its channels")
    if axis is not None and axis.dim != 0:
        raise Mixes(f"the convolution runs over dimension {axis.dim}, the batch")
    return axis


@rule("aten.layer_norm", "aten.rms_norm", "aten._fused_rms_norm", "aten.native_layer_norm")
def layer_norm(context: Context) -> State:
    return _leading(context, len(context.arg(1)), "the normalisation")


@rule("aten.group_norm", "aten.channel_shuffle", "aten.native_channel_shuffle")
def group_norm(context: Context) -> State:
    return _leading(context, len(context.shape(context.arg(0))) - 1, "the normalisation")


@rule("aten.instance_norm")
def instance_norm(context: Context) -> State:
    if not context.arg(5):
        return _leading(context, len(context.shape(context.arg(0))) - 1, "the normalisation")
    if context.arg(3) is not None:
        raise Mixes("it keeps running statistics of the batch; use track_running_stats=False")
    return _leading(context, len(context.shape(context.arg(0))) - 1, "the normalisation")


@rule("aten.batch_norm", "aten._native_batch_norm_legit_functional", "aten._native_batch_norm_legit",
      "aten.native_batch_norm", "aten._native_batch_norm_legit_no_training", "aten._batch_norm_with_update_functional",
      "aten.cudnn_batch_norm", "aten._batch_norm_no_update")
def batch_norm(context: Context) -> State:
    name = str(context.node.target)
    evaluates = "no_training" in name or "no_update" in name
    if not evaluates and ("with_update" in name or context.arg(5)):
        raise Mixes("batch normalisation in training mode mixes all examples. Replace it by GroupNorm "
                    "(fxperex.fix does), or call .eval() on it")
    axis = context.axis(0)
    if axis is not None and axis.dim == 1:
        raise Mixes("the batch is in the channel dimension")
    value = context.node.meta["val"]
    return (axis, *(None for _ in value[1:])) if isinstance(value, list | tuple) else axis


def _spatial(dims: int) -> Callable[[Context], State]:
    return lambda context: _leading(context, dims, "the window")


for count in (1, 2, 3):
    rule(f"aten.max_pool{count}d", f"aten.avg_pool{count}d", f"aten.adaptive_avg_pool{count}d",
         f"aten.adaptive_max_pool{count}d", f"aten.max_pool{count}d_with_indices")(_spatial(count))
rule("aten._adaptive_avg_pool2d")(_spatial(2))
rule("aten._adaptive_avg_pool3d")(_spatial(3))
rule("aten.upsample_nearest1d", "aten.upsample_linear1d")(_spatial(2))
rule("aten.upsample_nearest2d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d", "aten._upsample_nearest_exact2d",
     "aten._upsample_bilinear2d_aa", "aten.pixel_shuffle", "aten.pixel_unshuffle", "aten.im2col")(_spatial(3))
rule("aten.upsample_nearest3d", "aten.upsample_trilinear3d")(_spatial(4))


@rule("aten.scaled_dot_product_attention")
def attention(context: Context) -> State:
    rank = len(context.out)
    axes = [context.axis(i) for i in range(3)]
    if any(a is not None and a.dim >= rank - 2 for a in axes):
        raise Mixes("the attention runs over the batch: its tokens would be examples; put the batch first")
    found = both(both(axes[0], axes[1]), axes[2])
    mask = meet(context, [context.arg(3, "attn_mask")], rank)
    if mask is not None and mask.dim >= rank - 2:
        raise Mixes("the mask has the batch where the tokens are")
    return both(found, mask)


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrent(context: Context) -> State:
    if not isinstance(context.arg(3), bool):
        raise Mixes("packed sequences have no fixed place for an example; use padding and a mask")
    first = context.arg(8 if len(context.node.args) > 8 else 7, default=False)
    axis, at = context.axis(0), 0 if first else 1
    if axis is None or axis.dim != at:
        raise Mixes(f"the recurrence runs over the batch: with batch_first={bool(first)} the batch must be in "
                    f"dimension {at}")
    state = BatchAxis(1, axis.outer, axis.inner)
    starts = context.arg(1)
    for start in starts if isinstance(starts, list | tuple) else [starts]:
        found = context.states.get(start)
        if isinstance(found, BatchAxis):
            both(found, state)
        elif found is not None:
            raise Mixes("its first state was summed over the batch")
    if any(context.states.get(p) is not None for p in context.arg(2)):
        raise Mixes("its weights depend on the batch")
    return (axis, *(state for _ in context.node.meta["val"][1:]))


@rule("aten.prelu")
def prelu(context: Context) -> State:
    axis = context.axis(0)
    if axis is not None and axis.dim == 1 and context.shape(context.arg(1)) != (1,):
        raise Mixes("the batch is in the channel dimension")
    return axis


REDUCTION = {"cross_entropy_loss": 3, "nll_loss": 3, "nll_loss_nd": 3, "nll_loss2d": 3, "mse_loss": 2, "l1_loss": 2,
             "smooth_l1_loss": 2, "huber_loss": 2, "binary_cross_entropy": 3, "binary_cross_entropy_with_logits": 4,
             "kl_div": 2, "soft_margin_loss": 2, "poisson_nll_loss": 5}
CLASSIFY = {"cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d"}


def loss_name(context_target: object) -> str:
    return str(getattr(context_target, "overloadpacket", context_target)).removeprefix("aten.")


@rule(*(f"aten.{name}" for name in REDUCTION))
def loss(context: Context) -> State:
    """Loss ops: with a reduction over the batch a loss in the making, else element by element."""
    name = loss_name(context.node.target)
    reduction = context.arg(REDUCTION[name], "reduction", 1)
    score, target = context.axis(0), context.axis(1)
    if name not in CLASSIFY:
        # Element by element, hence broadcast: [B, 1] against [B] is a table of pairs.
        operands = [a for a in context.node.args if isinstance(a, fx.Node)]
        axis = meet(context, operands, max(len(context.shape(a)) for a in operands))
    elif score is None or target is None:
        axis = score or target
        if axis is not None:
            raise Mixes("scores and targets must both carry the batch")
    elif score.place != target.place and not (score.fresh or target.fresh):
        raise Mixes("scores and targets have the examples in different places")
    else:
        axis = score
    rank = len(context.shape(context.arg(0)))
    if axis is not None and name in CLASSIFY and axis.dim == (1 if rank > 1 else 0):
        raise Mixes("the batch is in the class dimension")
    return Reduced("mean" if reduction == 1 else "sum") if reduction and axis is not None else axis
