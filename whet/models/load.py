"""Checkpoints from a directory or hub id, as ordinary transformers and peft objects.

Weights are read as safetensors only: a pickle runs code when it is opened. Everything that can be wrong with a path
is said before torch starts to allocate.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, load_peft_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from whet.config.model import Lora, Model
from whet.errors import ModelError, first_line, nearest
from whet.models.adapted_layers import adapted_layers
from whet.models.device import CPU, accelerator, computes_bf16, move
from whet.models.four_bit import dequantised, is_quantised, loading, record_base, settled, warn_of_another_base
from whet.models.narrow_products import warn_of_slow_products
from whet.models.own_attention import offer_packing
from whet.models.parts import Parts, save_in_parts
from whet.models.processor_files import copy_processor
from whet.models.prompt_adapters import refuse_prompts
from whet.models.unreadable import unreadable
from whet.models.vision import language_layers, vision_parts
from whet.schema.artifacts import ModelRef, is_hub_id


def pick_device(name: str, *, field: str = "device") -> torch.device:
    """The device that a plan's `field` names; `auto` takes the accelerator that torch finds, else the CPU.

    Raises ModelError where this machine has no such device: else the first model to be moved there would find out,
    after all rows have been tokenised.
    """
    here = accelerator()
    if name == "auto":
        return here or CPU
    if name != "cpu" and (here is None or name != here.type):
        raise ModelError(
            "torch finds no such device on this machine", field=field, found=repr(name),
            fix="use auto or cpu, or install a torch that is built for it",
        )  # fmt: skip
    return torch.device(name)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The arithmetic of `train.precision`. On a CPU `auto` is fp32, which is exact; a narrow type that it has no
    instructions for is warned of."""
    match precision:
        case "auto" if computes_bf16(device):
            return torch.bfloat16
        case "bf16" | "fp16":
            if device.type == "cpu":
                warn_of_slow_products(precision)
            return torch.bfloat16 if precision == "bf16" else torch.float16
        case _:
            return torch.float32


def load_tokenizer(
    path: str, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; `chat_template` is a Jinja file that replaces its own. A missing pad becomes EOS.

    Padding is always masked by position, never recognised by its id, so sharing EOS with it costs no learning.
    """
    check_directory(path)
    with unreadable("no usable tokenizer", field="model.path", path=path, fix="check the checkpoint"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if not tokenizer("a").input_ids:
        raise ModelError("no usable tokenizer", field="model.path", found=repr(path), fix="tokenizer.json is missing")
    if chat_template is not None:
        template = Path(chat_template)
        if not template.is_file():
            raise ModelError("no such file", field="model.chat_template", found=chat_template)
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def template_of(ref: ModelRef) -> str | None:
    """The chat template that was saved with an adapter: it may not be its checkpoint's own."""
    saved = Path(ref.adapter) / "chat_template.jinja" if ref.adapter else None
    return str(saved) if saved is not None and saved.is_file() else None


def load_model(
    ref: ModelRef, config: Model, *, dtype: torch.dtype, trainable: bool = False, seed: int = 0,
    plain: bool = False,
) -> PreTrainedModel | PeftModel:  # fmt: skip
    """Load a checkpoint and its adapter onto the configured device.

    With `trainable`, trainable weights are fp32 whatever `dtype` is (the loop computes in `dtype` by autocast): the
    adapter of `ref` is continued, else a fresh one is made by `config.lora` (initialised from `seed`), else, with
    `lora: null`, every weight trains. A vision tower and its projector train only with `config.vision.train`. Without
    `trainable` the model is in eval mode and nothing requires grad. With `plain`, weights that `config.quantization`
    has rounded to 4 bits are held in `dtype` again.
    """
    device = pick_device(config.device, field="model.device")
    if trainable or ref.adapter is not None:
        refuse_quantised(ref.path, config)
    full = trainable and ref.adapter is None and config.lora is None
    model, report = open_checkpoint(ref.path, config, dtype=torch.float32 if full else dtype, plain=plain)
    if "score.weight" in report["unexpected_keys"] or (ref.adapter and _scores(ref.adapter)):
        raise ModelError(
            "a reward model, not a language model", field="model.path", found=repr(ref.adapter or ref.path),
            fix="score with it (whet score); it cannot answer",
        )  # fmt: skip
    check_complete(report["missing_keys"], "model.path", ref.path)
    if ref.adapter is not None:
        warn_of_another_base(ref.adapter, config.quantization)
        model = with_adapter(model, ref.adapter, trainable=trainable)
    elif trainable and config.lora is not None:
        model = with_fresh_adapter(model, lora_config(config.lora, model, config), seed=seed)
    move(model, device)
    if not trainable:
        model.requires_grad_(False)
    freeze_vision(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train(trainable)


def open_checkpoint(
    path: str, config: Model, *, dtype: torch.dtype, plain: bool = False
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The language model in a checkpoint, its eyes included where it has any, and transformers' report on the loading.

    Raises ModelError where it cannot be loaded.
    """
    check_directory(path)
    known = read_config(path, config)
    kind = AutoModelForImageTextToText if has_eyes(known) else AutoModelForCausalLM
    return from_checkpoint(kind, known, path, config, dtype=dtype, plain=plain)


def from_checkpoint(
    kind: Any, known: PretrainedConfig, path: str, config: Model, *, dtype: torch.dtype, plain: bool = False,
    **asked: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:  # fmt: skip
    """`kind.from_pretrained` by the plan's words. Raises ModelError where the weights cannot be loaded."""
    told = dict(
        attn_implementation=None if config.attention == "sdpa" else config.attention, use_safetensors=True,
        trust_remote_code=config.trust_remote_code, output_loading_info=True, **asked,
    )  # fmt: skip
    if config.quantization is None:
        told["dtype"] = dtype
    else:
        told |= loading(config, kind, known, pick_device(config.device, field="model.device"))
    with unreadable("cannot load the weights", field="model.path", path=path):
        model, report = kind.from_pretrained(path, **told)
    if config.attention == "sdpa":
        offer_packing(model, language_layers(model))
    if config.quantization is not None:
        model = settled(model, dtype)
        model = dequantised(model) if plain else model
    return model, report


def read_config(path: str, config: Model) -> PretrainedConfig:
    """The checkpoint's config.json. Raises ModelError without one, and for weights that lie in 4 bits already."""
    with unreadable("cannot load the weights", field="model.path", path=path):
        known = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    stored = getattr(known, "quantization_config", None)
    if stored is not None and (config.quantization is not None or stored.get("quant_method") == "bitsandbytes"):
        raise _quantised(path, stored)
    return known


def refuse_quantised(path: str, config: Model) -> None:
    """Raises ModelError for weights that are quantised already, in whatever way: transformers may answer with them, but
    what trains on them and is saved would have lost the scales that they are multiplied by."""
    check_directory(path)
    stored = getattr(read_config(path, config), "quantization_config", None)
    if stored is not None:
        raise _quantised(path, stored)


def _quantised(path: str, stored: dict[str, Any]) -> ModelError:
    return ModelError(
        "a checkpoint that is quantised already", field="model.path", found=f"{path!r}, {stored.get('quant_method')}",
        fix="take the one it was made of; model.quantization can hold that in 4 bits",
    )  # fmt: skip


def has_eyes(known: PretrainedConfig) -> bool:
    """Whether the checkpoint is of a vision-language model."""
    return getattr(known, "vision_config", None) is not None


def freeze_vision(model: PreTrainedModel | PeftModel, config: Model) -> None:
    """Leave tower and projector as they are, unless the plan trains them."""
    whole: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    for part in vision_parts(whole).values():
        if not config.vision.train:
            part.requires_grad_(False)


def end_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel, *known: int
) -> tuple[int, ...]:
    """Ids that end a turn: those `known` from elsewhere (the template), the tokenizer's EOS, and whatever the
    checkpoint's generation config names."""
    ids = [*known, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    configured = model.generation_config.eos_token_id
    ids += configured if isinstance(configured, list) else [] if configured is None else [configured]
    return tuple(dict.fromkeys(ids))


def save_trained(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, directory: Path, parts: Parts | None = None
) -> None:
    """Write what was trained: the adapter alone, or the whole checkpoint; with the tokenizer and its template, and
    what tells how pictures are prepared, from where the tokenizer came from. Of weights in `parts` by all ranks. Raises
    ModelError for a whole model in 4 bits, which nobody could go on from."""
    if isinstance(model, PeftModel):
        # peft keeps the names as a set and writes them in hash order: equal adapters would differ in their bytes.
        for config in model.peft_config.values():
            if isinstance(config.target_modules, set):
                config.target_modules = sorted(config.target_modules)
    if parts is not None:
        save_in_parts(model, directory, parts)
        if not parts.writes:
            return
    elif isinstance(model, PeftModel):
        model.save_pretrained(directory, selected_adapters=["default"])
        record_base(model, directory)
    elif is_quantised(model):
        raise ModelError("weights in 4 bits are not saved", field="model.quantization", fix="train an adapter")
    else:
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if vision_parts(model.get_base_model() if isinstance(model, PeftModel) else model):
        copy_processor(tokenizer.name_or_path, directory)


def with_adapter(model: PreTrainedModel, adapter: str, *, trainable: bool) -> PeftModel:
    """The model with an adapter from a directory or hub id. Raises ModelError where a file is missing or incomplete."""
    check_adapter(adapter)
    # peft draws the matrices before it reads them: whoever counts on the generators loads a model like any file.
    with unreadable("cannot load the adapter", field="model.adapter", path=adapter), torch.random.fork_rng(devices=[]):
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
        stored = load_peft_weights(adapter, device="cpu")
    # peft also names weights of the base under an adapted embedding, which are the checkpoint's and not always stored.
    missing = get_peft_model_state_dict(adapted).keys() - stored.keys()
    check_complete([name for name in missing if ".base_layer." not in name], "model.adapter", adapter)
    return adapted


def check_adapter(adapter: str) -> None:
    """Say what a local adapter lacks, and refuse one that is not in the layers. A path that does not exist is a hub
    id."""
    for file, problem in (
        ("adapter_config.json", "not an adapter directory"),
        ("adapter_model.safetensors", "adapter without safetensors weights"),
    ):
        if Path(adapter).exists() and not (Path(adapter) / file).is_file():
            raise ModelError(problem, field="model.adapter", found=adapter, fix=f"{file} is missing")
    refuse_prompts(adapter)


def _scores(adapter: str) -> bool:
    """Whether an adapter on this disk is a reward model's."""
    config = Path(adapter) / "adapter_config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else None
    except ValueError:
        found = None  # loading it will say that it is damaged
    return isinstance(found, dict) and found.get("task_type") == "SEQ_CLS"


def check_complete(missing: Collection[str], field: str, place: str) -> None:
    """The libraries fill what a file lacks with random numbers and a warning; nobody wants to train or measure that."""
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing, {min(missing)} for one", field=field, found=repr(place),
            fix="check that the file is whole and fits the model",
        )  # fmt: skip


def lora_config(lora: Lora, model: PreTrainedModel, config: Model) -> LoraConfig:
    """peft's words for the plan's adapter on this language model."""
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, task_type="CAUSAL_LM",
        target_modules=adapted_layers(model, lora.targets, vision=config.vision.train),
    )  # fmt: skip


def with_fresh_adapter(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PeftModel:
    """A new adapter on the model, its random numbers from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU, where the model still is
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                "no such layers", field="model.lora.targets", found=str(config.target_modules), fix=first_line(error)
            ) from error


def check_directory(path: str) -> None:
    """Say what a local path lacks. A path that does not exist is a hub id, if it looks like one."""
    directory = Path(path)
    if not directory.exists():
        if not is_hub_id(path):
            near = (
                nearest(directory.name, [p.name for p in directory.parent.glob("*")])
                if directory.parent.is_dir()
                else None
            )
            raise ModelError(
                "no such directory", field="model.path", found=repr(path),
                fix=f"did you mean {directory.parent / near}?" if near
                else "give a directory, or a hub id like Qwen/Qwen3-0.6B",
            )  # fmt: skip
        return
    if not (directory / "config.json").is_file():
        raise ModelError(
            "not a checkpoint directory", field="model.path", found=repr(path), fix="config.json is missing"
        )
    if not list(directory.glob("*.safetensors")):
        pickles = sorted(p.name for p in [*directory.glob("*.bin"), *directory.glob("*.pt")])
        raise ModelError(
            "checkpoint without safetensors weights", field="model.path", found=repr(path),
            fix=f"convert {pickles[0]} to safetensors first" if pickles else "put model.safetensors there",
        )  # fmt: skip
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        with unreadable("cannot load the weights", field="model.path", path=path):
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        absent = sorted(name for name in names if not (directory / name).is_file())
        if absent:
            raise ModelError(
                "weights are incomplete", field="model.path", found=repr(path), fix=f"{absent[0]} is missing"
            )
