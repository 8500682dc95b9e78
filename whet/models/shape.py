"""A model's shape from its config.json alone: the model is made on the meta device, where weights have sizes only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from whet.config.model import Model
from whet.models.adapted_layers import ALL, adapted_layers
from whet.models.per_layer import largest
from whet.models.unreadable import unreadable
from whet.models.vision import language_layers, vision_parts
from whet.schema.shape import ModelShape, Product


def shape_of(path: str, config: Model) -> ModelShape:
    """The shape of the checkpoint at `path`, a directory with a config.json or a hub id, under the plan's adapter.

    Raises ModelError where there is no configuration that transformers knows.
    """
    model = empty_model(path, config)
    text = model.config.get_text_config()
    decoder: Any = language_layers(model)
    layers = list(decoder.layers)
    heads = largest(text, "num_attention_heads") or 1
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    experts, per_token = getattr(text, "num_experts", None), getattr(text, "num_experts_per_tok", None) or 1
    return ModelShape(
        name=type(model).__name__,
        parameters=_size(model.parameters()),
        largest=max(parameter.numel() for parameter in model.parameters()),
        block=max(_size(layer.parameters()) for layer in layers),
        vision=sum(_size(part.parameters()) for part in vision_parts(model).values()),
        layers=len(layers),
        width=text.hidden_size,
        inner=per_token * text.moe_intermediate_size if experts else largest(text, "intermediate_size"),
        heads=heads,
        head_width=largest(text, "head_dim") or text.hidden_size // heads,
        key_heads=largest(text, "num_key_value_heads") or heads,
        vocabulary=embedding.weight.shape[0] if head is None else head.weight.shape[0],
        tied=head is None or head.weight is embedding.weight,
        normed_heads=any(name.endswith("q_norm") for name, _ in layers[0].named_modules()),
        experts=sum(_size(p for p in layer.parameters() if p.dim() == 3) for layer in layers),
        experts_share=per_token / experts if experts else 1.0,
        products=_products(decoder.modules()),
        adapted=() if config.lora is None else _products(_adapted(model, config)),
    )


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _products(modules: Iterable[torch.nn.Module]) -> tuple[Product, ...]:
    sizes = Counter(
        (module.in_features, module.out_features) for module in modules if isinstance(module, torch.nn.Linear)
    )
    return tuple(Product(inputs=inputs, outputs=outputs, count=count) for (inputs, outputs), count in sizes.items())


def _adapted(model: PreTrainedModel, config: Model) -> list[torch.nn.Module]:
    """The layers that peft would adapt: those named, or every linear layer but the head."""
    assert config.lora is not None, "there is an adapter"
    chosen = adapted_layers(model, config.lora.targets, vision=config.vision.train)
    head = model.get_output_embeddings()
    if chosen == ALL:
        return [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return [
        module for name, module in model.named_modules() if any(f".{name}".endswith(f".{target}") for target in chosen)
    ]


def empty_model(path: str, config: Model) -> PreTrainedModel:
    """The model of a configuration, on the meta device."""
    with unreadable(
        "no configuration of a model", field="model.path", path=path, fix="name a folder with its config.json"
    ):
        known = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        seeing = getattr(known, "vision_config", None) is not None
        kind = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
        with torch.device("meta"):
            model: PreTrainedModel = kind.from_config(known, trust_remote_code=config.trust_remote_code)
    model.tie_weights()
    return model
