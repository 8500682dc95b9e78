"""Makes what both sides of `grpo` train on: prompts, and a checkpoint that answers in text.

The model is random, so it draws tokens of its whole vocabulary, most of which a tokenizer trained on a few texts does
not have. The rest is filled with made-up words: every answer can be read, and rewards differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.grpo_job import Learning
from benchmarks.prepare import MAX_VOCABULARY
from benchmarks.shapes import SHAPES, Shape, build_model
from benchmarks.texts import WORDS, Lengths, write_prompts
from whet.config.data import Data
from whet.data.sources import read_records
from whet.data.tokens import load_tokenizer
from whet.models.tiny import train_tokenizer
from whet.schema.records import Prompt


def prepare(learning: Learning, size: str, prompt_tokens: int) -> None:
    """Write the prompts, and build `learning.checkpoint` unless it is there."""
    num = learning.steps * learning.prompts
    # whet's feed visits an epoch by a permutation of (seed, epoch).
    order = np.random.Generator(np.random.PCG64([learning.seed, 0])).permutation(num)
    folder, shape = Path(learning.checkpoint), SHAPES[size]
    asked: list[Any]
    if learning.pictures:
        asked = _with_pictures(learning, num, folder, shape)
    else:
        lengths = Lengths(prompt=prompt_tokens, response=learning.new_tokens)
        asked = write_prompts(Path(learning.data), num, lengths)
        if not folder.is_dir():
            tokenizer = train_tokenizer(asked, vocab_size=min(MAX_VOCABULARY, shape.vocabulary))
            build_model(shape, tokenizer, folder, device=learning.device)
            fill_vocabulary(folder / "tokenizer.json", shape.vocabulary)
    Path(learning.ordered).write_text(json.dumps([asked[place] for place in order]), encoding="utf-8")


def _with_pictures(learning: Learning, num: int, folder: Path, shape: Shape) -> list[dict[str, Any]]:
    from benchmarks import vision
    from benchmarks.pictures import write_questions

    write_questions(Path(learning.data), num)
    records, _ = read_records(Data(files=(learning.data,)), ("prompt",))
    if not folder.is_dir():
        texts = [record.messages[-1].text for record in records if isinstance(record, Prompt)]
        vision.build_model(shape, texts, folder)
        fill_vocabulary(folder / "tokenizer.json", shape.vocabulary)
    return [vision.as_asked(record, load_tokenizer(learning.checkpoint)) for record in records]


def fill_vocabulary(tokenizer_file: Path, size: int) -> None:
    """Give every id that has no token one: a word and a number, which no merge leads to."""
    tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for token in range(len(vocabulary), size):
        vocabulary[f"Ġ{WORDS[token % len(WORDS)]}{token // len(WORDS)}"] = token
    tokenizer_file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
