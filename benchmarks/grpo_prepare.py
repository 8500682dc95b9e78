"""Makes what both sides of `grpo` train on: prompts, and a checkpoint that answers in text.

The model is random, so it draws tokens of its whole vocabulary, most of which a tokenizer trained on a few texts does
not have. The rest is filled with made-up words: every answer can be read, and rewards differ.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.grpo_job import Learning
from benchmarks.prepare import MAX_VOCABULARY
from benchmarks.shapes import SHAPES, build_model
from benchmarks.texts import WORDS, Lengths, write_prompts
from whet.models.tiny import train_tokenizer


def prepare(learning: Learning, size: str, prompt_tokens: int) -> None:
    """Write the prompts, and build `learning.checkpoint` unless it is there."""
    lengths = Lengths(prompt=prompt_tokens, response=learning.new_tokens)
    texts = write_prompts(Path(learning.data), learning.steps * learning.prompts, lengths)
    # whet's feed visits an epoch by a permutation of (seed, epoch).
    order = np.random.Generator(np.random.PCG64([learning.seed, 0])).permutation(len(texts))
    Path(learning.ordered).write_text(json.dumps([texts[place] for place in order]), encoding="utf-8")
    folder, shape = Path(learning.checkpoint), SHAPES[size]
    if not folder.is_dir():
        tokenizer = train_tokenizer(texts, vocab_size=min(MAX_VOCABULARY, shape.vocabulary))
        build_model(shape, tokenizer, folder, device=learning.device)
        fill_vocabulary(folder / "tokenizer.json", shape.vocabulary)


def fill_vocabulary(tokenizer_file: Path, size: int) -> None:
    """Give every id that has no token one: a word and a number, which no merge leads to."""
    tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for token in range(len(vocabulary), size):
        vocabulary[f"Ġ{WORDS[token % len(WORDS)]}{token // len(WORDS)}"] = token
    tokenizer_file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
