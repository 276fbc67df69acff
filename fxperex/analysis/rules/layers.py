"""Whole layers: convolution, normalisation, pooling, attention, recurrence, losses."""

from __future__ import annotations

from collections.abc import Callable

from fxperex.analysis.rules.pointwise import meet
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, Reduced, State, join
from fxperex.graph.aten import packet
from fxperex.sites import BatchAxis

INPUT = "input|self"


def _leading(context: Context, below: int, what: str) -> State:
    """The input's axis must lie before its last `below` dimensions, on which the layer works."""
    axis = context.axis(INPUT)
    rank = len(context.shape(context.arg(INPUT)))
    if axis is not None and axis.dim >= rank - below:
        raise Mixes(f"{what} runs over dimension {axis.dim}, the batch")
    return context.for_each_result(axis)


def _rank(context: Context) -> int:
    return len(context.shape(context.arg(INPUT)))


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.conv_transpose1d", "aten.conv_transpose2d",
      "aten.conv_transpose3d", "aten.convolution", reads="input weight bias")
def convolution(context: Context) -> State:
    if context.axis("weight") is not None or context.axis("bias") is not None:
        raise Mixes("its weight depends on the batch")
    axis = context.axis("input")
    if len(context.shape(context.arg("input"))) != len(context.shape(context.arg("weight"))):
        raise Mixes("its input is one image without a batch dimension, so the batch would be its "
                    "channels")
    if axis is not None and axis.dim != 0:
        raise Mixes(f"the convolution runs over dimension {axis.dim}, the batch")
    return axis


@rule("aten.layer_norm", "aten.rms_norm", "aten._fused_rms_norm", "aten.native_layer_norm",
      reads=f"{INPUT} normalized_shape")
def layer_norm(context: Context) -> State:
    return _leading(context, len(context.arg("normalized_shape")), "the normalisation")


@rule("aten.group_norm", "aten.channel_shuffle", "aten.native_channel_shuffle", reads=INPUT)
def group_norm(context: Context) -> State:
    return _leading(context, _rank(context) - 1, "the normalisation")


@rule("aten.instance_norm", reads=f"{INPUT} use_input_stats running_mean")
def instance_norm(context: Context) -> State:
    if context.arg("use_input_stats") and context.arg("running_mean") is not None:
        raise Mixes("it keeps running statistics of the batch; use track_running_stats=False")
    return _leading(context, _rank(context) - 1, "the normalisation")


@rule("aten.batch_norm", "aten._native_batch_norm_legit_functional",
      "aten._native_batch_norm_legit", "aten.native_batch_norm",
      "aten._native_batch_norm_legit_no_training", "aten._batch_norm_with_update_functional",
      "aten.cudnn_batch_norm", "aten._batch_norm_no_update", reads="input training?")
def batch_norm(context: Context) -> State:
    name = str(context.node.target)
    evaluates = "no_training" in name or "no_update" in name
    if not evaluates and context.arg("training?", True):
        raise Mixes("batch normalisation in training mode mixes all examples. Replace it by "
                    "GroupNorm (fxperex.fix does), or call .eval() on it")
    axis = context.axis("input")
    if axis is not None and axis.dim == 1:
        raise Mixes("the batch is in the channel dimension")
    value = context.node.meta["val"]
    return (axis, *(None for _ in value[1:])) if isinstance(value, list | tuple) else axis


def _spatial(dims: int) -> Callable[[Context], State]:
    return lambda context: _leading(context, dims, "the window")


for count in (1, 2, 3):
    rule(f"aten.max_pool{count}d", f"aten.avg_pool{count}d", f"aten.adaptive_avg_pool{count}d",
         f"aten.adaptive_max_pool{count}d", f"aten.max_pool{count}d_with_indices",
         reads=INPUT)(_spatial(count))
rule("aten._adaptive_avg_pool2d", reads=INPUT)(_spatial(2))
rule("aten._adaptive_avg_pool3d", reads=INPUT)(_spatial(3))
rule("aten.upsample_nearest1d", "aten.upsample_linear1d", reads=INPUT)(_spatial(2))
rule("aten.upsample_nearest2d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d",
     "aten._upsample_nearest_exact2d", "aten._upsample_bilinear2d_aa",
     "aten._upsample_bicubic2d_aa", "aten.pixel_shuffle", "aten.pixel_unshuffle", "aten.im2col",
     reads=INPUT)(_spatial(3))
rule("aten.upsample_nearest3d", "aten.upsample_trilinear3d", reads=INPUT)(_spatial(4))
rule("aten.col2im", reads=INPUT)(_spatial(2))


@rule("aten.max_unpool2d", "aten.max_unpool3d", reads="self indices")
def unpool(context: Context) -> State:
    axis = join([context.axis("self"), context.axis("indices")])
    below = 3 if "2d" in str(context.node.target) else 4
    if axis is not None and (axis.dim >= len(context.out) - below or None in
                             (context.axis("self"), context.axis("indices"))):
        raise Mixes("images and indices must both have the batch first")
    return axis


@rule("aten.scaled_dot_product_attention", reads="query key value attn_mask")
def attention(context: Context) -> State:
    rank = len(context.out)
    axes = [context.axis(name) for name in ("query", "key", "value")]
    if any(a is not None and a.dim >= rank - 2 for a in axes):
        raise Mixes("the attention runs over the batch: its tokens would be examples; put the "
                    "batch first")
    mask = meet(context, [context.arg("attn_mask")], rank)
    if mask is not None and mask.dim >= rank - 2:
        raise Mixes("the mask has the batch where the tokens are")
    return join([*axes, mask])


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu", reads="input? hx params "
                                                                       "batch_first?")
def recurrent(context: Context) -> State:
    batch_first = context.arg("batch_first?")
    if batch_first is None:
        raise Mixes("packed sequences have no fixed place for an example; use padding and a mask")
    axis, place = context.axis("input?"), 0 if batch_first else 1
    if axis is None or axis.dim != place:
        raise Mixes(f"the recurrence runs over the batch: with batch_first={bool(batch_first)} "
                    f"the batch must be in dimension {place}")
    if any(context.axis_of(p) is not None for p in context.arg("params")):
        raise Mixes("its weights depend on the batch")
    starts = context.arg("hx")
    starts = starts if isinstance(starts, list | tuple) else [starts]
    state = join([axis.moved(1), *map(context.axis_of, starts)])
    assert state is not None
    return (state.moved(place), *(state for _ in context.node.meta["val"][1:]))


@rule("aten.prelu", reads="self weight")
def prelu(context: Context) -> State:
    axis = context.axis("self")
    if context.axis("weight") is not None:
        raise Mixes("its weight depends on the batch")
    if axis is not None and axis.dim == 1 and context.shape(context.arg("weight")) != (1,):
        raise Mixes("the batch is in the channel dimension")
    return axis


REDUCTION = {
    "cross_entropy_loss": 3, "nll_loss": 3, "nll_loss_nd": 3, "nll_loss2d": 3, "mse_loss": 2,
    "l1_loss": 2, "smooth_l1_loss": 2, "huber_loss": 2, "binary_cross_entropy": 3,
    "binary_cross_entropy_with_logits": 4, "kl_div": 2, "soft_margin_loss": 2, "poisson_nll_loss": 5
}
CLASSIFY = {"cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d"}


@rule(*(f"aten.{name}" for name in REDUCTION), reads=f"{INPUT} target reduction")
def loss(context: Context) -> State:
    """Loss ops: with a reduction over the batch a loss in the making, else element by element."""
    reduction = context.arg("reduction")
    if packet(context.node) in CLASSIFY:
        axis = _classified(context)
    else:  # element by element, hence broadcast: [B, 1] against [B] is a table of pairs
        axis = meet(context, context.tensors, max(len(context.shape(a)) for a in context.tensors))
    return Reduced("mean" if reduction == 1 else "sum",
                   axis) if reduction and axis is not None else axis


def _classified(context: Context) -> BatchAxis | None:
    """Where the examples are in the losses of scores `[B, classes, ...]`, whose second dimension is
    gone in them."""
    scores, target = context.axis(INPUT), context.axis("target")
    rank = _rank(context)
    classes = 1 if rank > 1 else 0
    if scores is None or target is None:
        if scores is not None or target is not None:
            raise Mixes("scores and targets must both carry the batch")
        return None
    if scores.dim == classes:
        raise Mixes("the batch is in the class dimension")
    if len(context.shape(context.arg("target"))) == rank:  # probabilities: of the same classes
        return _without(join([scores, target]), classes)
    return join([_without(scores, classes), target])


def _without(axis: BatchAxis | None, classes: int) -> BatchAxis | None:
    return axis and axis.moved(axis.dim - (axis.dim > classes))


MARGINS = {"multi_margin_loss", "multilabel_margin_loss"}


@rule(*(f"aten.{name}" for name in MARGINS), reads="self target reduction weight?")
def margin(context: Context) -> State:
    """Losses of scores `[B, classes]` with one number per example."""
    reduction = context.arg("reduction")
    if context.axis("weight?") is not None:
        raise Mixes("its class weights depend on the batch")
    scores, target = context.axis("self"), context.axis("target")
    rank = len(context.shape(context.arg("self")))
    if scores is None and target is None:
        return None
    if rank != 2 or scores is None or target is None or scores.dim or target.dim:
        raise Mixes("its scores must be [B, classes], and its targets have the batch first")
    axis = join([scores, target])
    return Reduced("mean" if reduction == 1 else "sum", axis) if reduction else axis


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d", reads="input grid")
def grid_sampler(context: Context) -> State:
    axes = [context.axis(name) for name in ("input", "grid")]
    if any(axis is None or axis.dim for axis in axes):
        raise Mixes("images and grids must both have the batch first; expand what is one for all "
                    "to the batch")
    return join(axes)

