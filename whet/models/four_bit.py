"""Frozen linear layers whose weights lie in 4 bits (QLoRA, Dettmers et al., 2305.14314), as bitsandbytes keeps them.

A weight is dequantised for every product, in the type of the computation, and forgotten again; the backward pass does
the same once more instead of keeping it. So the numbers are those of a plain layer with the dequantised weight, on
every device and for any number of rows: bitsandbytes' own layer takes other kernels for one row, and on some CPUs
bf16 for everything.

The LM head, embeddings, norms, a reward head, and the vision tower and projector of a vision-language model stay what
they are.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from whet.config.model import Model, Quantization
from whet.errors import ModelError
from whet.models.bnb import bitsandbytes
from whet.models.head import product_dtype
from whet.models.vision import vision_parts

FIELD = "model.quantization"
SCORE = "score"
"""The reward head's name, of which only its end is compared."""
RECORD = "quantization.json"
"""In an adapter's folder: how its base was held."""
MARKS = ("hf_quantizer", "is_loaded_in_4bit", "is_quantized", "quantization_method", "hf_device_map")
"""What transformers sets on a model that it has loaded in 4 bits."""


def loading(config: Model, kind: Any, known: PretrainedConfig, device: torch.device) -> dict[str, Any]:
    """What `kind.from_pretrained` is told, so that each weight is in 4 bits as soon as it is read.

    Raises RunError where bitsandbytes is missing, ModelError for a model without a plain linear layer.
    """
    quantization = config.quantization
    assert quantization is not None, "who asks for it has it"
    bitsandbytes(FIELD, quantization.type)
    with torch.device("meta"):
        skeleton = kind.from_config(known, trust_remote_code=config.trust_remote_code)
    kept = _kept_whole(skeleton)
    if not any(type(module) is torch.nn.Linear and not _under(name, kept) for name, module in skeleton.named_modules()):
        raise ModelError(
            f"{type(skeleton).__name__} has no linear layer to quantise", field=FIELD, found=repr(config.path),
            fix="leave model.quantization out",
        )  # fmt: skip
    asked = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantization.type, bnb_4bit_use_double_quant=quantization.double,
        llm_int8_skip_modules=kept,
    )  # fmt: skip
    # From the weights as they are stored: 4 bits of them do not depend on the precision of the computation.
    return {"quantization_config": asked, "device_map": {"": device}, "dtype": "auto"}


def settled(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model as it was just loaded in 4 bits: everything else in `dtype`, its products too."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and is_four_bit(weight):
            weight.quant_state.dtype = dtype  # type: ignore[attr-defined]
            module.__class__ = _frozen(type(module))  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same numbers in plain linear layers: an ordinary model, which trains and is saved as any other.

    To be called before an adapter is put on it.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, FourBitLinear):
            continue
        weight = dense(module.weight)
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight)
        plain.register_parameter("bias", module.bias)
        model.set_submodule(name, plain)
    for mark in MARKS:
        if mark in model.__dict__:
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def is_four_bit(weight: Tensor) -> bool:
    """Whether a weight is in 4 bits, two in a byte."""
    return getattr(weight, "quant_state", None) is not None


def is_quantised(model: torch.nn.Module) -> bool:
    """Whether any weight of the model is."""
    return any(is_four_bit(parameter) for parameter in model.parameters())


def record_base(model: torch.nn.Module, adapter: Path) -> None:
    """Leave word in an adapter's folder of the base that it was trained on; none where that is not in 4 bits."""
    for parameter in model.parameters():
        if is_four_bit(parameter):
            state: Any = parameter.quant_state  # type: ignore[attr-defined]
            found = Quantization(type=state.quant_type, double=state.nested)
            (adapter / RECORD).write_text(found.model_dump_json() + "\n", encoding="utf-8")
            return


def trained_on(adapter: str | None) -> Quantization | None:
    """How an adapter's base was held in training, where that was left word of."""
    file = None if adapter is None else Path(adapter) / RECORD
    if file is None or not file.is_file():
        return None
    try:
        return Quantization.model_validate_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError("cannot be read", file=str(file), fix="remove it, or train the adapter again") from error


def warn_of_another_base(adapter: str | None, held: Quantization | None) -> None:
    """Say that an adapter was trained on other weights than it is put on now."""
    trained = trained_on(adapter)
    if trained is not None and trained != held:
        warnings.warn(
            f"{adapter} was trained on a base in {trained.type} (double: {str(trained.double).lower()}) and is put on "
            f"one in {'full precision' if held is None else held.type}: its answers differ a little. Set "
            "model.quantization as it was, or put a merge stage behind the training",
            stacklevel=3,
        )  # fmt: skip


def dense(weight: Tensor) -> Tensor:
    """[out, in]: a weight in 4 bits as it is multiplied; any other as it is."""
    if not is_four_bit(weight):
        return weight
    state: Any = weight.quant_state  # type: ignore[attr-defined]
    made: Tensor = bitsandbytes(FIELD, state.quant_type).functional.dequantize_4bit(weight.data, state)
    return made


def dense_shape(weight: Tensor) -> torch.Size:
    """[out, in] of the same, without dequantising."""
    state: Any = getattr(weight, "quant_state", None)
    return weight.shape if state is None else torch.Size(state.shape)


def product_type(weight: Tensor) -> torch.dtype:
    """The type in which a weight is multiplied."""
    state: Any = getattr(weight, "quant_state", None)
    return weight.dtype if state is None else state.dtype


class FourBitLinear(torch.nn.Module):
    """A mixin before bitsandbytes' own layer: y = x W' + b with W dequantised. Saved files stay what they are."""

    weight: Tensor
    bias: torch.nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        dtype = product_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = _Product.apply(x.to(dtype), self.weight, bias)  # type: ignore[no-untyped-call]
        return out


@cache
def _frozen(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    return type(f"Frozen{kind.__name__}", (FourBitLinear, kind), {})


class _Product(torch.autograd.Function):
    """x [..., in]; the gradient is that of x, and of a bias that trains."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # frozen, and on its device in any case: nothing that is kept for the backward pass
        return torch.nn.functional.linear(x, dense(weight).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        for_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return torch.matmul(grad, dense(ctx.weight).to(grad.dtype)), None, for_bias


def _kept_whole(skeleton: PreTrainedModel) -> list[str]:
    """Names of what is not quantised; layers of GPT-2's kind lie transposed, and are left as well."""
    head = skeleton.get_output_embeddings()
    names = [*vision_parts(skeleton), SCORE]
    names += [name for name, module in skeleton.named_modules() if module is head or isinstance(module, Conv1D)]
    return names


def _under(name: str, kept: list[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") or name.endswith(other) for other in kept)

