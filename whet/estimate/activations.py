"""What a forward pass keeps for the backward pass, counted tensor by tensor.

With H the width of the residual stream, A and K those of all queries and all keys, I the feed-forward layer's, a layer
of a decoder with RMS norms, rotary positions and a gated feed-forward keeps of every token

    residual stream before each norm    2 H      queries, turned         A      gate, up, their product    3 I
    what each norm gives                2 H      keys and values         2 K
                                                 attention's result      2 A    and copied for the next product

in the bytes of the arithmetic, 4 or 2. A norm that trains keeps its normalised input as well (transformers computes it
in fp32, whatever comes); one on queries and keys the same of these. The other cases below differ in what is cast:
fp32 weights under 16-bit arithmetic keep an fp32 residual stream and a cast of it for each of five products.

The last layer keeps less where few tokens are read (`whet.models.last_layer`); it is counted like the others.

`tests/estimate/test_activations.py` holds these counts against what autograd really saves.
"""

from __future__ import annotations

from whet.estimate.setting import Setting
from whet.schema.shape import ModelShape

TILE_LOGITS = 512 * 2048
"""Logits that exist at once under a head of one matrix (`whet.models.head_sums`)."""


def layer_bytes(setting: Setting) -> float:
    """Bytes a token and layer, all that depends on the number of tokens alone."""
    shape = setting.shape
    h, a, k, i = shape.width, shape.attention_width, shape.key_width, shape.inner
    queries_and_keys = a + k if shape.normed_heads else 0
    frozen, item = setting.trains != "all", setting.item
    if frozen:
        kept = item * (4 * h + 3 * a + 2 * k + 3 * i + queries_and_keys)
    elif item == 4:
        kept = 4 * (6 * h + 3 * a + 2 * k + 3 * i + 2 * queries_and_keys)
    elif setting.casts:
        kept = 26 * h + 6 * a + 4 * k + 6 * i + 6 * queries_and_keys
    else:
        kept = 16 * h + 6 * a + 4 * k + 6 * i + 6 * queries_and_keys
    if _own_attention(setting):
        kept -= item * a  # its result is the next layer's input as it comes
    statistics = 4 * (2 + shape.heads + (shape.heads + shape.key_heads if shape.normed_heads else 0))
    return kept + statistics + _adapter_bytes(setting)


def _adapter_bytes(setting: Setting) -> float:
    """The low-rank products, and under dropout an input and a mask of its own for every adapted layer."""
    if setting.trains != "adapter":
        return 0.0
    adapted, layers = setting.shape.adapted, setting.shape.layers
    count = sum(product.count for product in adapted) / layers
    inputs = sum(product.count * product.inputs for product in adapted) / layers
    return setting.item * count * setting.rank + (inputs * (setting.item + 1) if setting.dropout else 0.0)


def _own_attention(setting: Setting) -> bool:
    """Whether short segments go through `whet.models.tree_attention`: where products are bf16."""
    return setting.on_cpu and setting.arithmetic == "bf16"


def kept_bytes(setting: Setting) -> float:
    """Of the largest micro-batch, over all layers, until its backward pass begins."""
    shape, batch = setting.shape, setting.micro_batch
    if setting.trains == "head":
        return 4.0 * batch.targets * shape.width
    stream = 4 if setting.casts else setting.item
    last_norm = stream * shape.width * (1 if setting.trains != "all" else 3)
    own = batch.length * layer_bytes(setting)
    if setting.on_cpu:
        own += _segment_bytes(setting)
    inputs = batch.length * shape.width * stream * shape.layers
    layers = inputs + own if batch.recompute else own * shape.layers  # recomputed, one layer at a time is whole
    return layers + batch.length * last_norm + _casts(setting)


def _segment_bytes(setting: Setting) -> float:
    """On a CPU attention goes segment by segment: the keys and values a branch sees are copied, or their
    probabilities kept."""
    batch, shape = setting.micro_batch, setting.shape
    if _own_attention(setting):
        return 2.0 * shape.heads * batch.pairs
    return 2.0 * shape.key_width * batch.seen * setting.item


def _casts(setting: Setting) -> float:
    """The 16-bit copies that autocast makes of fp32 weights, until the backward pass is over."""
    return 2.0 * setting.shape.multiplied if setting.casts else 0.0


def backward_bytes(setting: Setting) -> float:
    """What the backward pass of one layer needs beside: gradients of its widest tensors."""
    if setting.trains == "head":
        return 0.0
    shape = setting.shape
    return setting.micro_batch.length * setting.item * (3.0 * shape.inner + 2 * shape.width + shape.attention_width)


def head_bytes(setting: Setting) -> float:
    """Under the LM head: hidden states and directions of all targets and a few tiles of logits; no row of logits is
    ever whole. The running mean, its rows of the head and their quotient exist at the same time."""
    if setting.scores:
        return 8.0 * setting.micro_batch.targets * setting.shape.width
    return setting.micro_batch.targets * setting.shape.width * (setting.item + 16.0) + 3 * 4 * TILE_LOGITS


def pass_bytes(setting: Setting, shape: ModelShape) -> float:
    """A pass without gradient: what one layer has at once, and what the head needs of it."""
    wide = 3 * shape.inner + 4 * shape.width + 2 * shape.attention_width
    return setting.pass_tokens * (setting.item * wide + 16.0 * shape.width)
