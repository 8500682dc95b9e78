"""Weights of which every rank holds a part: gathered one tensor at a time, and written as they come.

So no rank ever has more of the model whole than one tensor. All ranks gather together; one of them writes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

FILE_BYTES = 5 * 10**9
"""A larger checkpoint is written as several files and an index, as model hubs want it."""
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names in safetensors' header."""


@dataclass(frozen=True, slots=True)
class Parts:
    """How to get at the whole of a model's tensors."""

    whole: Callable[[Tensor], Tensor]
    """A parameter, on its device; asked by all ranks in the same order."""
    shape: Callable[[Tensor], tuple[int, ...]]
    writes: bool
    """Whether this rank keeps what is gathered."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A tensor that will be there when it is asked for."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    whole: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def save_in_parts(model: PreTrainedModel | PeftModel, directory: Path, parts: Parts) -> None:
    """What `save_pretrained` writes: the adapter, or the whole checkpoint with its configuration."""
    if parts.writes:
        directory.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        trained = {name: parts.whole(p).cpu() for name, p in model.named_parameters() if p.requires_grad}
        if parts.writes:
            model.save_pretrained(directory, selected_adapters=["default"], state_dict=trained)
        return
    tensors = checkpoint_tensors(model, parts)
    if getattr(model, "_weight_conversions", None):
        # Stored under other names, or several as one: transformers turns them back when it has them all.
        state = {tensor.name: tensor.whole().cpu() for tensor in tensors}
        if parts.writes:
            model.save_pretrained(directory, state_dict=state)
        return
    if parts.writes:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = str(tensors[0].dtype).removeprefix("torch.")
        model.config.save_pretrained(directory)
        if model.can_generate():
            model.generation_config.save_pretrained(directory)
    write_checkpoint(tensors, directory if parts.writes else None)


def checkpoint_tensors(model: PreTrainedModel, parts: Parts) -> list[Gathered]:
    """All weights and persistent buffers under the names of a checkpoint, tied ones once."""
    tied, known = set(model.all_tied_weights_keys), {id(p): name for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in tied and known[id(parameter)] in tied:
            known[id(parameter)] = name
    found = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if known[id(parameter)] == name:
            dtype = torch.float32 if parameter.requires_grad else parameter.dtype
            found.append(Gathered(name, dtype, parts.shape(parameter), _later(parts.whole, parameter)))
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, buffer in model.state_dict().items():
        if name not in parameters:
            found.append(Gathered(name, buffer.dtype, tuple(buffer.shape), _later(torch.Tensor.detach, buffer)))
    return found


def write_checkpoint(tensors: Sequence[Gathered], directory: Path | None) -> None:
    """`model.safetensors`, or several files and their index. Without a directory the tensors are gathered only."""
    files: list[list[Gathered]] = [[]]
    for tensor in tensors:
        if files[-1] and sum(t.num_bytes for t in files[-1]) + tensor.num_bytes > FILE_BYTES:
            files.append([])
        files[-1].append(tensor)
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for name, held in zip(names, files, strict=True):
        write_tensors(held, None if directory is None else directory / name)
    if len(files) > 1 and directory is not None:
        index = {
            "metadata": {"total_size": sum(tensor.num_bytes for tensor in tensors)},
            "weight_map": {tensor.name: name for name, held in zip(names, files, strict=True) for tensor in held},
        }
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tensors(tensors: Sequence[Gathered], path: Path | None) -> None:
    """A safetensors file, each tensor written when it has been gathered. Without a path they are gathered only.

    The format: the header's length as 8 bytes, the header as JSON padded with spaces to a multiple of 8, the bytes.
    """
    # Wide types first, so that every tensor starts at a multiple of its width.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    if path is None:
        for tensor in ordered:
            tensor.whole()
        return
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            whole = tensor.whole().to("cpu", tensor.dtype).contiguous()
            assert tuple(whole.shape) == tensor.shape, f"{tensor.name} is {tuple(whole.shape)}, not {tensor.shape}"
            whole.reshape(-1).view(torch.uint8).numpy().tofile(file)


def _later(whole: Callable[[Tensor], Tensor], parameter: Tensor) -> Callable[[], Tensor]:
    return lambda: whole(parameter)
