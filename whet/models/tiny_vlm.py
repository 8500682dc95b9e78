"""A vision-language model built on the spot: a random checkpoint of a real architecture, with a real image processor.

    path = build_tiny_vlm("runs/tiny-vl", ["some text"], family="qwen3_vl", tower=Tower(patch_size=8))
    model = AutoModelForImageTextToText.from_pretrained(path)
    processor = AutoImageProcessor.from_pretrained(path)

As in `whet.models.tiny`: the tokenizer is trained on the texts it is handed, with the special tokens of the family, the
chat template writes pictures where they stand in a message, and the same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from whet.models.tiny import CHAT_TEMPLATE, train_tokenizer

Family = Literal["qwen2_5_vl", "qwen3_vl", "llava"]

START, END, PICTURE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
LLAVA_PICTURE = "<image>"
_TEXT_ONLY = " if part.type == 'text' %}\n                {{- part.text }}"
"""How the text model's template goes through the parts of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """The sizes of a vision tower. A token of the language model stands for merge x merge patches (LLaVA: for one)."""

    depth: int = 2
    hidden_size: int = 32
    intermediate_size: int = 64
    num_heads: int = 2
    """The width of a head must be a multiple of 4."""
    patch_size: int | None = None
    """Pixels a side; None is the family's own: 14, 16 for Qwen3-VL."""
    merge_size: int = 2
    """Qwen only."""
    temporal_patch_size: int = 2
    """Qwen only: a picture is a film of so many equal frames."""
    min_tokens: int = 4
    max_tokens: int = 64
    """Tokens of a picture of the language model, which the processor resizes it to stay within. Qwen only."""
    num_positions: int = 64
    """Qwen3-VL only: learned positions, a square number, stretched over each picture."""
    picture_size: int = 56
    """LLaVA only: every picture is cut to a square of so many pixels a side."""


def build_tiny_vlm(
    directory: str | Path,
    texts: Iterable[str],
    *,
    family: Family = "qwen2_5_vl",
    vocab_size: int = 512,
    hidden_size: int = 64,
    intermediate_size: int | None = None,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    max_positions: int = 2048,
    rope_theta: float = 10_000.0,
    tower: Tower | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a random checkpoint, its tokenizer and its image processor into `directory`; return its path.

    The language model is that of the family: Qwen2.5, Qwen3, for LLaVA Llama. `vocab_size` is an upper bound, as in
    `build_tiny`; at least 263 are needed, the family's special tokens included. The width of a head must be a multiple
    of 8: its rotary angles are shared out among three positions.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tower = tower or Tower()
    tokenizer = _tokenizer(texts, family, vocab_size, max_positions)
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size or 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": hidden_size // num_heads,
        "max_position_embeddings": max_positions,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    rope = {"rope_type": "default", "rope_theta": rope_theta}
    # The caller's random state is none of our business: leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match family:
            case "qwen2_5_vl" | "qwen3_vl":
                model = _qwen(family, text, rope, tower, tokenizer)
                _qwen_processor(family, tower).save_pretrained(directory)
            case "llava":
                model = _llava({**text, "rope_parameters": rope}, tower, tokenizer)
                processor = _llava_processor(tower, tokenizer)
                processor.image_processor.save_pretrained(directory)  # in a file of its own, as published ones have it
                processor.save_pretrained(directory)
            case _:
                assert_never(family)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(directory)
    model.to(dtype).save_pretrained(directory)
    return directory


def _tokenizer(texts: Iterable[str], family: Family, vocab_size: int, max_positions: int) -> PreTrainedTokenizerFast:
    marks = [LLAVA_PICTURE] if family == "llava" else [START, END, PICTURE, VIDEO]
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size, max_positions=max_positions, marks=marks)
    written = LLAVA_PICTURE if family == "llava" else START + PICTURE + END
    both = f" %}}\n                {{{{- part.text if part.type == 'text' else '{written}' }}}}"
    tokenizer.chat_template = CHAT_TEMPLATE.replace(_TEXT_ONLY, both)
    return tokenizer


def _qwen(
    family: Literal["qwen2_5_vl", "qwen3_vl"], text: dict[str, Any], rope: dict[str, Any], tower: Tower,
    tokenizer: PreTrainedTokenizerFast,
) -> PreTrainedModel:  # fmt: skip
    patch, angles = _patch_size(family, tower), text["head_dim"] // 2
    vision: dict[str, Any] = {
        "depth": tower.depth,
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "num_heads": tower.num_heads,
        "patch_size": patch,
        "spatial_merge_size": tower.merge_size,
        "temporal_patch_size": tower.temporal_patch_size,
        "out_hidden_size": text["hidden_size"],
    }
    marks: dict[str, Any] = {
        "image_token_id": tokenizer.convert_tokens_to_ids(PICTURE),
        "video_token_id": tokenizer.convert_tokens_to_ids(VIDEO),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids(START),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids(END),
        "tie_word_embeddings": True,
    }
    # Angles for time, height and width, in the proportion of the published checkpoints.
    if family == "qwen2_5_vl":
        each = 3 * angles // 8
        text["rope_parameters"] = {**rope, "mrope_section": [angles - 2 * each, each, each]}
        # Windows of four by four tokens, and attention over the whole picture in the last layer.
        vision["window_size"] = 4 * tower.merge_size * patch
        vision["fullatt_block_indexes"] = [tower.depth - 1]
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks))
    each = 5 * angles // 16
    text["rope_parameters"] = {**rope, "mrope_section": [angles - 2 * each, each, each], "mrope_interleaved": True}
    vision["num_position_embeddings"] = tower.num_positions
    vision["deepstack_visual_indexes"] = [0]  # of the tower's first layer, added after the language model's first
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **marks))


def _qwen_processor(family: Literal["qwen2_5_vl", "qwen3_vl"], tower: Tower) -> Qwen2VLImageProcessorPil:
    patch = _patch_size(family, tower)
    token = (patch * tower.merge_size) ** 2
    middle = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if family == "qwen3_vl" else {}
    return Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=tower.merge_size,
        temporal_patch_size=tower.temporal_patch_size,
        min_pixels=tower.min_tokens * token,
        max_pixels=tower.max_tokens * token,
        **middle,
    )


def _llava(text: dict[str, Any], tower: Tower, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.num_heads,
        "patch_size": _patch_size("llava", tower),
        "image_size": tower.picture_size,
        "projection_dim": tower.hidden_size,
    }
    config = LlavaConfig(
        text_config={**text, "model_type": "llama"},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(LLAVA_PICTURE),
        image_seq_length=(tower.picture_size // _patch_size("llava", tower)) ** 2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def _llava_processor(tower: Tower, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    side = tower.picture_size
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer,
        patch_size=_patch_size("llava", tower),
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=LLAVA_PICTURE,
    )  # fmt: skip


def _patch_size(family: Family, tower: Tower) -> int:
    return tower.patch_size or (16 if family == "qwen3_vl" else 14)
