"""How many tokens go through a model at once: an estimate from its shape and the machine's memory.

Deterministic on a machine, so that a run that is resumed splits its steps as before.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from transformers import PreTrainedModel

from whet.config.model import Quantization
from whet.models.device import has_own_memory
from whet.models.four_bit import dense_shape
from whet.models.packed_linear import PackedLinear
from whet.models.per_layer import largest

SHARE = 0.2
"""Part of the device's memory that the activations of one forward pass may take."""
LEAST, MOST = 1024, 65536
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The control groups of this process, and where Linux shows them: one tree, or in version 1 one a controller."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30
"""glibc's names (malloc.h), and the size up to which a block stays with the process."""
CPU_TOKENS, CPU_TOKENS_OF_LARGE = 768, 1024
"""Tokens that keep a CPU's cores busy, more at once cost memory and gain nothing; and of a large model, whose weights
do not stay in the caches: the more tokens meet them, the less often they are read (0.6B: a tenth of a step)."""
LARGE = 1 << 20
"""Bytes of a token's activations from which on a model is large: some 200M weights in bf16."""
KEPT_WIDTHS, KEPT_INNER, KEPT_HEADS = 16, 6, 10
"""Numbers kept for the backward pass per token and layer: so many times the layer's width (norms in fp32, residuals,
adapter inputs), its feed-forward width, and its attention width (queries, keys, values, norms, probabilities)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens per forward pass."""

    packed: int
    """Rows are packed together up to it."""
    kept: int
    """Longer than this, a row recomputes its activations in the backward pass."""


def token_budget(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> Budget:
    """What fits: activations within `SHARE` of the device's memory, rounded down to a power of two."""
    return budget_within(device_memory(device), activation_bytes(model, dtype), on_cpu=device.type == "cpu")


def budget_within(memory: float, token: float, *, on_cpu: bool) -> Budget:
    """The same in numbers: bytes of the device, and of a token's activations."""
    kept = max(LEAST, min(MOST, 1 << max(0, int(SHARE * memory / token).bit_length() - 1)))
    busy = CPU_TOKENS if token < LARGE else CPU_TOKENS_OF_LARGE
    return Budget(packed=min(kept, busy) if on_cpu else kept, kept=kept)


class FreedMemory:
    """Memory that was freed and is kept for the next step, within a limit. Only glibc (Linux) keeps any.

    Activations are gigabytes that are freed and wanted again seconds later; getting each page anew from the kernel
    costs a CPU about a tenth of its training time. But steps differ in length, so what is kept goes to pieces that fit
    nothing, and grows from step to step: beyond the limit all of it is given back.

    What was given back stays in the library's books as free. So what is kept is told from the memory that the process
    has: by the books alone it would be over the limit from then on, and every page would come anew for good.
    """

    def __init__(self, limit: float) -> None:
        """`limit` in bytes; what one step's activations take is a good one. The switch is the process's, for good."""
        self._limit = limit
        self._others = 0
        """Bytes the process had beside its blocks in use when free ones had last been given back."""
        self._library = _glibc()
        if self._library is not None:
            self._library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
            # Before 2.35 no more than half a heap, 32 MiB, is taken.
            _ = self._library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) or self._library.mallopt(M_MMAP_THRESHOLD, 32 << 20)

    def settle(self) -> None:
        """To be called whenever much has been freed."""
        if self._library is None:
            return
        blocks = self._library.mallinfo2()
        beside = resident_bytes() - blocks.uordblks
        self._others = min(self._others, beside)
        if min(blocks.fordblks, beside - self._others) > self._limit:
            self._library.malloc_trim(0)
            self._others = resident_bytes() - self._library.mallinfo2().uordblks


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2 (malloc.h); `uordblks` and `fordblks` are the bytes in use and free."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc 2.33 or newer."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    try:
        library.mallinfo2.restype = _MallInfo
    except AttributeError:
        return None
    return library


def activation_bytes(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Estimated bytes that one token's activations take until the backward pass, over all layers."""
    shape = _shape(model)
    numbers = KEPT_WIDTHS * shape.width + KEPT_INNER * shape.inner + KEPT_HEADS * shape.heads * shape.head_width
    return float(shape.layers * numbers * dtype.itemsize)


def num_weights(layers: torch.nn.Module) -> int:
    """Weights of layers, whatever they are held in, without embeddings."""
    numbers = 0
    for module in layers.modules():
        if isinstance(module, PackedLinear):
            numbers += module.num_weights
        elif not isinstance(module, torch.nn.Embedding):
            numbers += sum(dense_shape(parameter).numel() for parameter in module.parameters(recurse=False))
    return numbers


def decoding_tokens(model: PreTrainedModel) -> int:
    """Tokens whose keys and values fit into `SHARE` of the device's memory."""
    shape, first = _shape(model), next(model.parameters())
    token = 2 * shape.layers * shape.keys * shape.head_width * first.dtype.itemsize
    return max(LEAST, int(SHARE * device_memory(first.device) / token))


def has_room_for_copy(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Whether the model's weights, once more in `dtype`, fit into `SHARE` of its device's memory."""
    parameters = list(model.parameters())
    copy = sum(dense_shape(parameter).numel() for parameter in parameters) * dtype.itemsize
    return bool(copy <= SHARE * device_memory(parameters[0].device))


def quantised_bytes(quantization: Quantization) -> float:
    """Bytes a weight of a linear layer takes in 4 bits, its share of the scales included (2305.14314, section 3).

    Blocks of 64 weights have a scale in fp32; with `double` it has 8 bits, and 256 of them a scale in fp32.
    """
    scale = 1 + 4 / 256 if quantization.double else 4
    return 0.5 + scale / 64


@dataclass(frozen=True, slots=True)
class _Shape:
    layers: int
    width: int
    inner: int
    heads: int
    keys: int
    head_width: int


def _shape(model: PreTrainedModel) -> _Shape:
    # By attribute, since that is where older models translate their own names.
    config = model.config.get_text_config()
    width, heads = config.hidden_size, largest(config, "num_attention_heads") or 1
    return _Shape(
        layers=config.num_hidden_layers,
        width=width,
        inner=largest(config, "intermediate_size") or 4 * width,
        heads=heads,
        keys=largest(config, "num_key_value_heads") or heads,
        head_width=largest(config, "head_dim") or width // heads,
    )


def device_memory(device: torch.device) -> int:
    """Bytes of memory the device has in all; of the host's, what a container or a batch job leaves this process."""
    if has_own_memory(device):
        return int(torch.get_device_module(device).mem_get_info(device)[1])
    if sys.platform == "win32":
        return 8 << 30
    return min((os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()))


def _group_limits() -> Iterator[int]:
    """Memory limits of the control groups this process is in, its own and those around it.

    In a container the tree may begin at its own group, whatever that is called: the root always counts.
    """
    for line in OWN_GROUPS.read_text(errors="replace").splitlines() if OWN_GROUPS.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (GROUPS / "memory", "memory.limit_in_bytes") if controllers else (GROUPS, "memory.max")
        for place in (PurePosixPath(group), *PurePosixPath(group).parents):
            try:
                limit = (root / place.relative_to("/") / name).read_text(encoding="ascii").strip()
            except OSError:  # version 2 has none at the machine's own root
                continue
            if limit.isdigit():  # else `max`
                yield int(limit)


def resident_bytes() -> int:
    """Bytes of memory this process holds now; where the system tells no more than the most it ever held, that."""
    table = Path("/proc/self/statm")
    if table.exists():
        return int(table.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
