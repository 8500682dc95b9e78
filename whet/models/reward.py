"""Reward models: a language model's layers under a score head; made of a language model, continued, saved.

Of a model of text the checkpoint is transformers' sequence classifier. For vision-language models there is none, and
theirs is the checkpoint of the model itself, its LM head included, with one tensor more: `score.weight`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.errors import ModelError
from whet.models.four_bit import warn_of_another_base
from whet.models.load import (
    check_adapter,
    check_complete,
    check_directory,
    freeze_vision,
    from_checkpoint,
    has_eyes,
    lora_config,
    open_checkpoint,
    pick_device,
    read_config,
    refuse_quantised,
    save_trained,
    with_adapter,
    with_fresh_adapter,
)
from whet.models.parts import Parts
from whet.models.score_head import ADAPTER_KEY, KEY, ScoreHead, adapter_head, checkpoint_head, fresh_head, num_layers
from whet.schema.artifacts import ModelRef


@dataclass(frozen=True, slots=True)
class _Adapter:
    """An adapter to start from."""

    path: str
    head: Tensor | None
    """Its reward head; None where it was trained on a language model."""


def load_reward_model(
    ref: ModelRef, config: Model, head: RewardHead, *, dtype: torch.dtype, trainable: bool = False, seed: int = 0,
    plain: bool = False,
) -> PreTrainedModel | PeftModel:  # fmt: skip
    """Load a reward model, or with `trainable` make one of a language model, onto the configured device.

    The head is the adapter's, else the checkpoint's, else a fresh one from `seed`. The head and all that trains are
    fp32 whatever `dtype` is. With `trainable` the adapter of `ref` goes on, a language model's as well; else a fresh
    one is made by `config.lora`, else every weight trains. With `head.freeze_backbone` the adapter is folded into
    the layers and the head trains alone. Without `trainable` the model is in eval mode. `plain` as in `load_model`.
    Raises ModelError where a model to score with has no head, or the checkpoint cannot be a reward model, or a head
    is to train alone on weights in 4 bits.
    """
    check_directory(ref.path)
    if trainable or ref.adapter is not None:
        refuse_quantised(ref.path, config)
    if trainable and head.freeze_backbone and config.quantization is not None:
        raise ModelError(
            "the whole checkpoint is saved with the head, and weights in 4 bits are not", field="head.freeze_backbone",
            found="model.quantization", fix="leave one of them out",
        )  # fmt: skip
    warn_of_another_base(ref.adapter, config.quantization)
    adapter = _adapter(ref.adapter)
    stored = checkpoint_head(ref.path) if adapter is None or adapter.head is None else adapter.head
    if not trainable and (stored is None or (adapter is not None and adapter.head is None)):
        raise ModelError(
            "a language model, not a reward model", field="model.path", found=repr(ref.adapter or ref.path),
            fix="train one of it first, with a reward stage",
        )  # fmt: skip
    folds = trainable and head.freeze_backbone and adapter is not None
    whole = trainable and adapter is None and config.lora is None and not head.freeze_backbone
    model = _headless(ref.path, config, dtype=torch.float32 if whole or folds else dtype, plain=plain)
    model.score = ScoreHead(_head_for(model, stored, head, place=ref.adapter or ref.path, seed=seed))
    if trainable and not head.freeze_backbone:
        loaded = _with_trained_part(model, adapter, config, seed=seed)
    else:
        loaded = _folded(model, adapter, dtype) if folds else _as_trained(model, adapter)
    loaded.to(pick_device(config.device))
    freeze_vision(loaded, config)
    for name, parameter in loaded.named_parameters():
        if not trainable or (head.freeze_backbone and name != KEY):
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return loaded.train(trainable)


def save_reward_model(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, parts: Parts | None = None
) -> None:
    """Write what was trained, the head included: the adapter alone, or the whole checkpoint; see `save_trained`.

    transformers takes for a row's last token the last that is not padding. So where the tokenizer pads with the token
    that ends a text, the saved one pads with another, if it has any.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = tokenizer.bos_token or tokenizer.unk_token or tokenizer.eos_token
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    save_trained(model, tokenizer, folder, parts)


def _adapter(path: str | None) -> _Adapter | None:
    if path is None:
        return None
    check_adapter(path)
    return _Adapter(path, adapter_head(path))


def _headless(path: str, config: Model, *, dtype: torch.dtype, plain: bool) -> PreTrainedModel:
    """The layers of a reward model, whose `score` is about to be set."""
    if not has_eyes(read_config(path, config)):
        return _classifier(path, config, dtype=dtype, plain=plain)
    model, report = open_checkpoint(path, config, dtype=dtype, plain=plain)
    check_complete(report["missing_keys"], "model.path", path)
    # It is kept for whoever opens the checkpoint, and says nothing here. Where it is tied, the embeddings train.
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        head.requires_grad_(False)
    return model


def _classifier(path: str, config: Model, *, dtype: torch.dtype, plain: bool) -> PreTrainedModel:
    """transformers' sequence classifier with one label."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports the head that it did not find, or that did not fit
    try:
        model, report = from_checkpoint(
            AutoModelForSequenceClassification, read_config(path, config), path, config, dtype=dtype, plain=plain,
            num_labels=1, ignore_mismatched_sizes=True,
        )  # fmt: skip
    finally:
        logging.set_verbosity(verbosity)
    score = model._modules.get("score")
    if not isinstance(score, torch.nn.Linear) or score.bias is not None:
        raise ModelError(
            f"{type(model).__name__} has another kind of head", field="model.path", found=repr(path),
            fix="take a decoder such as Qwen3, Llama or Gemma",
        )  # fmt: skip
    unread = {key for key, *_ in report["mismatched_keys"]} | set(report["missing_keys"])
    check_complete(unread - {KEY}, "model.path", path)
    whole: PreTrainedModel = model
    return whole


def _head_for(model: PreTrainedModel, stored: Tensor | None, head: RewardHead, *, place: str, seed: int) -> Tensor:
    """The head's weight in fp32. Raises ModelError where the plan asks for other layers than are stored."""
    if stored is None:
        text = model.config.get_text_config()
        return fresh_head(head.layers, text.hidden_size, std=text.initializer_range, seed=seed)
    layers = num_layers(stored, place)
    if head.layers not in (1, layers):
        raise ModelError(
            f"the reward model has a head of {layers} layers already", field="head.layers", found=str(head.layers),
            fix=f"leave it out, or start from a language model instead of {place}",
        )  # fmt: skip
    return stored.float()


def _with_trained_part(
    model: PreTrainedModel, adapter: _Adapter | None, config: Model, *, seed: int
) -> PreTrainedModel | PeftModel:
    if adapter is not None:
        if adapter.head is not None:
            return with_adapter(model, adapter.path, trainable=True)
        return _with_language_adapter(model, adapter.path)
    if config.lora is None:
        return model
    lora = lora_config(config.lora, model, config)
    lora.task_type, lora.modules_to_save = "SEQ_CLS", ["score"]
    return with_fresh_adapter(model, lora, seed=seed)


def _as_trained(model: PreTrainedModel, adapter: _Adapter | None) -> PreTrainedModel | PeftModel:
    return model if adapter is None else with_adapter(model, adapter.path, trainable=False)


def _folded(model: PreTrainedModel, adapter: _Adapter | None, dtype: torch.dtype) -> PreTrainedModel:
    """The adapter in the weights, summed in fp32; then the layers in `dtype`, the head in fp32."""
    assert adapter is not None
    adapted = _with_language_adapter(model, adapter.path) if adapter.head is None else _as_trained(model, adapter)
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    narrow_layers(merged, dtype)
    return merged


def narrow_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast all but the score head, which stays what it is."""
    for name, part in model.named_children():
        if name != "score":
            part.to(dtype)


def _with_language_adapter(model: PreTrainedModel, adapter: str) -> PeftModel:
    """A language model's adapter, going on under a score head. Raises ModelError for one on its LM head."""
    config, stored = PeftConfig.from_pretrained(adapter), load_peft_weights(adapter, device="cpu")
    strange = config.modules_to_save
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", ["score"], False
    stored[ADAPTER_KEY] = model.score.weight.detach().clone()
    adapted = with_fresh_adapter(model, config, seed=0)
    unknown = strange or set_peft_model_state_dict(adapted, stored).unexpected_keys
    if unknown:
        raise ModelError(
            f"adapter trains {unknown[0]}, which a reward model's does not", field="model.adapter",
            found=repr(adapter), fix="put a merge stage before the reward stage",
        )  # fmt: skip
    check_complete(get_peft_model_state_dict(adapted).keys() - stored.keys(), "model.adapter", adapter)
    return adapted
