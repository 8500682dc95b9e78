"""A small vision-language model for the comparisons, and what the peer needs to be asked about pictures.

The model has the vocabulary of the Qwen models and little else. The peer renders and reads pictures by itself, in its
collator; its ids are compared with whet's by the tokens of a step.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset, List
from datasets import Image as Picture
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.shapes import Shape
from whet.models.tiny import TURN_END
from whet.models.tiny_vlm import Tower, build_tiny_vlm
from whet.schema.records import Preference, Prompt, Record

LANGUAGE_LAYERS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
"""Layers that whet gives adapters: the tower has none."""


def as_asked(record: Record, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A question as the peer's collator takes it: rendered, a response up to the end of its turn, as whet trains it
    (the peer's own rendering adds the line break behind); and the pictures."""
    assert isinstance(record, Preference | Prompt)
    parts = (record.prompt if isinstance(record, Preference) else record.messages)[-1].content
    assert not isinstance(parts, str)
    answers = (record.chosen[-1], record.rejected[-1]) if isinstance(record, Preference) else ()
    said = [{"type": "image"} if part.type == "image" else {"type": "text", "text": part.value} for part in parts]
    turns = [{"role": "user", "content": said}]
    return {
        "turns": turns,
        "question": tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True),
        "answers": [turn.text + TURN_END for turn in answers],
        "images": [part.value for part in parts if part.type == "image"],
    }


def peer_data(rows: list[dict[str, Any]]) -> Dataset:
    """Rows of `as_asked`; their pictures are opened when they are fetched. Questions without answers stay turns, which
    the peer wants there."""
    asked = [
        {"prompt": row["question"] if row["answers"] else row["turns"], "images": row["images"]}
        | dict(zip(("chosen", "rejected"), row["answers"], strict=False))
        for row in rows
    ]
    return Dataset.from_list(asked).cast_column("images", List(Picture()))


def build_model(shape: Shape, texts: list[str], folder: Path) -> None:
    """Write a bf16 Qwen2.5-VL checkpoint with its tokenizer and image processor. Its embedding has the shape's
    vocabulary, whatever the tokenizer's."""
    tower = Tower(depth=4, hidden_size=128, intermediate_size=384, num_heads=4)
    build_tiny_vlm(
        folder, texts, family="qwen2_5_vl", vocab_size=32_768, hidden_size=shape.hidden,
        intermediate_size=shape.intermediate, num_layers=shape.layers, num_heads=shape.heads,
        num_kv_heads=shape.kv_heads, max_positions=4096, tower=tower, dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    model.resize_token_embeddings(shape.vocabulary, mean_resizing=False)
    model.save_pretrained(folder)


def own_processor(folder: str) -> Any:
    """transformers' processor of the checkpoint. It insists on one for films as well, which wants torchvision and is
    not called here: where that is missing, something stands in its place."""
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
    films = SimpleNamespace(merge_size=pictures.merge_size, model_input_names=[])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with patch.object(Qwen2_5_VLProcessor, "check_argument_for_proper_class", lambda self, name, argument: None):
        return Qwen2_5_VLProcessor(pictures, tokenizer, films, chat_template=tokenizer.chat_template)
