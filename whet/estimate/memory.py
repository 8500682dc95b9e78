"""Memory of one rank, part by part, at each moment when it may be largest; the peak is the largest moment.

Bytes a weight under AdamW that is trained in fp32: 4 (weight) + 4 (gradient) + 8 (two averages), as ZeRO counts them
(Rajbhandari et al., 1910.02054, section 3.1, where the weight is 2 + 4). Frozen weights cost their type alone. What
sharding divides by the number of ranks and what it does not is written beside each part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from whet.estimate.activations import backward_bytes, head_bytes, kept_bytes, pass_bytes
from whet.estimate.setting import Beside, Setting
from whet.schema.shape import sum_of

MIB = 1 << 20
WORKING = 25 * MIB
"""Measured on CPUs: what the libraries allocate once they compute (thread pools, oneDNN's kernels and buffers)."""
REPORT, LEFT = 25 * MIB, 96 * MIB
"""Measured: what the report at the end of a run loads and draws with (matplotlib), while so much of what training
freed is still there in small pieces."""
CUDA_CONTEXT = 700 * MIB
"""Assumed: the CUDA context with the kernels of torch, which no allocator counts."""
CUDA_FRAGMENTS = 0.06
"""Assumed: share of what torch's allocator holds that fits no request."""
FREED = 0.5
"""Measured on CPUs: freed activations stay with the process (`whet.models.memory.FreedMemory`), and this part of them
fits nothing that is asked for later."""
FREED_ONLINE = 0.35
"""The same where generation and passes without gradient came first: what they freed is taken again."""
BUCKET = 2 * 64 * MIB
"""Gradients on their way between ranks that each hold all of them, and the buffer they are sent from."""
NARROW_SCRATCH = 2 * 16 * MIB
"""fp32 weights and gradients of the part that `whet.train.narrow` updates."""
STRIDE = 32
"""Keys and values have room for lengths that are a multiple of it (`whet.models.decoding`)."""
LEAST_PACKED = 512 * 512
"""Weights of an fp32 matrix from which on the engine holds it in another order (`whet.models.packed_linear`)."""
LEAST_ROWS = 8
"""Rows that are decoded together at least (`whet.models.backbone`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    bytes: float
    divided: bool = False
    """Sharding has divided it by the number of ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is in memory at the same time."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> float:
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of the place where training computes: the host on a CPU, else the GPU."""

    moments: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.bytes)


def memory_of(setting: Setting) -> Memory:
    """Every moment that may be the largest."""
    always, held = tuple(_always(setting)), tuple(_held(setting))
    training = [*held, *_training(setting)]
    moments = [_moment("training", [*always, *training], setting)]
    if setting.decoding is not None:
        moments.append(_moment("generation", [*always, *held, *_generation(setting)], setting))
    if setting.pass_tokens:
        passed = Part(name="pass without gradient", bytes=pass_bytes(setting, setting.shape))
        moments.append(_moment("scoring", [*always, *held, passed], setting))
    if setting.on_cpu:
        moments += _loading(setting, always)
        left = Part(name="left of training", bytes=min(LEFT, sum(part.bytes for part in training)))
        moments.append(Moment(name="report", parts=(*always, left, Part(name="report", bytes=REPORT))))
    return Memory(moments=tuple(moments))


def _moment(name: str, parts: list[Part], setting: Setting) -> Moment:
    whole = [part for part in parts if part.bytes > 0]
    if not setting.on_cpu:
        held = sum(part.bytes for part in whole if part.name != CONTEXT)
        whole.append(Part(name="fragments (assumed)", bytes=CUDA_FRAGMENTS * held))
    return Moment(name=name, parts=tuple(whole))


CONTEXT = "CUDA context (assumed)"


def _always(setting: Setting) -> Iterator[Part]:
    """There from the start to the end."""
    if setting.on_cpu:
        yield Part(name="interpreter and libraries", bytes=setting.libraries + WORKING)
    else:
        yield Part(name=CONTEXT, bytes=CUDA_CONTEXT)


def _held(setting: Setting) -> Iterator[Part]:
    """There from the second step on, whatever happens."""
    copies = 2 if setting.value_model else 1
    yield from _weights(setting, copies)
    yield _share(setting, "optimiser state", copies * _optimizer_bytes(setting))
    if setting.weights != "fp32":
        yield Part(name="fp32 scratch of the update", bytes=NARROW_SCRATCH)
    for beside in setting.beside:
        if beside.on_cpu == setting.on_cpu:
            yield Part(name=beside.part, bytes=_beside_bytes(setting, beside))
    if setting.decoding is not None:
        yield Part(name="engine's copy of the weights", bytes=_engine_copy(setting))


def _weights(setting: Setting, copies: int) -> Iterator[Part]:
    shape, trainable = setting.shape, setting.trainable
    if setting.trains == "all":
        each = 4 if setting.weights == "fp32" else 2
        frozen = shape.parameters + setting.score_head - trainable
        yield _shard(setting, "weights", copies * (each * trainable + 4 * frozen))
        if setting.sharded and setting.sharding != "fsdp" and setting.item == 2:
            yield _shard(setting, "weights in 16 bits", copies * 2.0 * trainable)
    else:
        yield _shard(setting, "frozen weights", copies * _frozen_bytes(setting))
        yield _shard(setting, "trained weights (fp32)", copies * 4.0 * trainable)
    if setting.sharded and setting.sharding != "zero2":
        gathered = 2 * shape.block + shape.largest * (1 if shape.tied else 2)
        yield Part(name="layers gathered from all ranks", bytes=setting.item * gathered)


def _frozen_bytes(setting: Setting) -> float:
    """Embeddings, norms and the LM head are not in 4 bits, nor are experts, whose weights are no linear layers."""
    shape = setting.shape
    narrow = sum_of(shape.products) if setting.four_bits else 0
    return setting.four_bits * narrow + setting.item * (shape.parameters - narrow)


def _optimizer_bytes(setting: Setting) -> float:
    """Two averages a weight; 8 bits have an fp32 scale a block of 256, and embeddings keep 32 bits (2110.02861)."""
    trainable = setting.trainable
    remainder = 2.0 * trainable if setting.weights == "bf16_master" else 0.0
    match setting.optimizer:
        case "adamw":
            return remainder + 8.0 * trainable
        case "paged_adamw" | "paged_adamw_8bit":
            return remainder  # the averages lie in pages that move to the host
        case "adamw_8bit":
            wide = setting.shape.head if setting.trains == "all" else 0
            return remainder + 8.0 * wide + (2 + 2 * 4 / 256) * (trainable - wide)


def _beside_bytes(setting: Setting, beside: Beside) -> float:
    return float((4 if beside.on_cpu and not setting.on_cpu else setting.item) * beside.shape.parameters)


def _engine_copy(setting: Setting) -> float:
    """What the engine cannot share (`whet.models.snapshot`): all trained weights in the arithmetic's type, or the
    adapted layers with their adapter folded in. On a CPU every product and the head, in another order."""
    shape = setting.shape
    head = shape.head if _is_packed(setting, shape.head) else 0
    if setting.trains == "all":
        return float(setting.item * (shape.parameters + (head if shape.tied else 0)))
    packed = [product for product in shape.products if _is_packed(setting, product.inputs * product.outputs)]
    folded = [product for product in shape.adapted if not _is_packed(setting, product.inputs * product.outputs)]
    return float(setting.item * (sum_of(packed) + sum_of(folded) + head))


def _is_packed(setting: Setting, weights: int) -> bool:
    """Whether the engine holds a matrix of so many weights in the order of its products."""
    small = setting.arithmetic == "fp32" and weights < LEAST_PACKED
    return setting.on_cpu and setting.arithmetic != "fp16" and not small


def _training(setting: Setting) -> Iterator[Part]:
    """At the largest micro-batch, a layer of its backward pass being computed."""
    copies = 2 if setting.value_model else 1
    yield _share(setting, "gradients", copies * _gradient_bytes(setting))
    yield Part(name="gradients on their way", bytes=copies * _gradients_on_their_way(setting))
    if setting.ranks > 1 and not setting.sharded:
        yield Part(name="gradients between ranks", bytes=min(BUCKET, 8.0 * setting.trainable))
    if setting.four_bits:
        largest = max((product.inputs * product.outputs for product in setting.shape.products), default=0)
        yield Part(name="a weight in full for its product", bytes=float(setting.item * largest))
    kept, backward = kept_bytes(setting), backward_bytes(setting)
    on_device = 0.0 if setting.offload_activations else copies * kept
    yield Part(name="activations", bytes=on_device + backward)
    yield Part(name="LM head" if not setting.scores else "score head", bytes=head_bytes(setting))
    if setting.on_cpu:
        share = FREED if setting.decoding is None else FREED_ONLINE
        yield Part(name="freed memory that fits nothing", bytes=share * (on_device + backward))


def _gradient_bytes(setting: Setting) -> float:
    """bf16 weights get bf16 gradients, which are added up in fp32 from the second micro-batch on."""
    narrow = setting.weights != "fp32" and not setting.several
    return (2.0 if narrow else 4.0) * setting.trainable


def _gradients_on_their_way(setting: Setting) -> float:
    """Whole gradients of embedding and head before they are added to what is there; a tied matrix gets two."""
    shape = setting.shape
    if setting.trains != "all":
        return 0.0
    each, item = 4.0 * shape.head, 4 if setting.weights == "fp32" else 2
    if setting.scores:
        return item * shape.head * (1.0 if setting.several else 0.0)
    if not shape.tied:
        return each if setting.several or item == 2 else 0.0
    return each + (item * shape.head if setting.several or item == 2 else 0.0)


def _generation(setting: Setting) -> Iterator[Part]:
    decoding, shape = setting.decoding, setting.shape
    assert decoding is not None, "something is generated"
    places = decoding.prompts * _room(decoding.prompt_tokens) + decoding.rows * _room(decoding.answer_tokens)
    token = 2 * shape.layers * shape.key_width * setting.item
    # A layer's memory grows by making a larger one beside it, and what it frees is too small for the next.
    yield Part(name="keys and values", bytes=token * places * (1 + FREED if setting.on_cpu else 1 + 1 / shape.layers))
    rows = max(LEAST_ROWS, decoding.rows)
    yield Part(name="logits", bytes=rows * shape.vocabulary * (setting.item if setting.on_cpu else setting.item + 8.0))
    prefill = min(2048, decoding.prompts * decoding.prompt_tokens)
    layer = 3 * shape.inner + 4 * shape.width + 2 * shape.attention_width + 2 * shape.layers * shape.key_width
    yield Part(name="prompts on their way", bytes=float(prefill * layer * setting.item))


def _room(length: int) -> int:
    return -(-length // STRIDE) * STRIDE


def _loading(setting: Setting, always: tuple[Part, ...]) -> Iterator[Moment]:
    """A checkpoint in another type is mapped while it is converted."""
    mapped = Part(name="checkpoint, mapped", bytes=float(setting.file_bytes))
    whole = 4.0 * setting.shape.parameters
    loaded = Part(name="weights", bytes=whole if setting.trains == "all" else _frozen_bytes(setting))
    yield Moment(name="loading", parts=(*always, loaded, mapped))
    if setting.beside:
        besides = [Part(name=b.part, bytes=_beside_bytes(setting, b)) for b in setting.beside]
        yield Moment(name="loading the models beside", parts=(*always, loaded, *besides, mapped))


def _shard(setting: Setting, name: str, size: float) -> Part:
    """Weights: divided by FSDP2 and ZeRO-3; the fp32 ones of 16-bit training by ZeRO-2 as well."""
    master = name == "weights" and setting.item == 2 and setting.trains == "all"
    return _divided(setting, name, size, setting.sharded and (setting.sharding != "zero2" or master))


def _share(setting: Setting, name: str, size: float) -> Part:
    """Gradients and optimiser state: divided by ZeRO-2 as well."""
    return _divided(setting, name, size, setting.sharded)


def _divided(setting: Setting, name: str, size: float, divided: bool) -> Part:
    if divided and setting.cpu_offload:
        return Part(name=f"{name} (on the host)", bytes=0.0, divided=True)
    return Part(name=name, bytes=size / setting.ranks if divided else size, divided=divided)
