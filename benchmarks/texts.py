"""Made-up texts of known lengths, so that a benchmark needs no file: words of a fixed list, drawn by a fixed seed.

A word is common or rare as in language (Zipf's law), and each becomes one token of the tokenizer trained on these
texts. A row is a question and an answer, or a question and two answers.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path

from benchmarks.job import Task

ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr", "pl")
RHYMES = ("an", "el", "in", "or", "us", "ai", "ot", "em", "ir", "o", "a", "e")
WORDS = tuple(a + b + c for (a, b), c in product(product(ONSETS, RHYMES), ("", "da", "ko", "lim", "ser")))
WEIGHTS = tuple(accumulate(1.0 / rank for rank in range(1, len(WORDS) + 1)))
"""Cumulative."""
FRAME_TOKENS = 24
"""Roughly what the chat template adds to a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of a question and of an answer: uniform within a quarter of the mean on either side."""

    prompt: int
    response: int

    def draw(self, mean: int, generator: random.Random) -> int:
        return max(1, round(mean * generator.uniform(0.75, 1.25)))

    @property
    def longest(self) -> int:
        """Tokens of the longest row there may be."""
        return round(1.25 * (self.prompt + self.response)) + FRAME_TOKENS


def write_texts(path: Path, task: Task, num_rows: int, lengths: Lengths, *, seed: int = 0) -> None:
    """`num_rows` rows for a task, as JSON lines that whet reads. The same arguments give the same bytes."""
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_rows):
            prompt, answers = _text(lengths, lengths.prompt, generator), 1 if task == "sft" else 2
            said = [_text(lengths, lengths.response, generator) for _ in range(answers)]
            if task == "sft":
                row = {"instruction": prompt, "input": "", "output": said[0]}
            else:
                row = {"prompt": prompt, "chosen": said[0], "rejected": said[1]}
            file.write(json.dumps(row) + "\n")


def write_prompts(path: Path, num_rows: int, lengths: Lengths, *, seed: int = 0) -> list[str]:
    """Questions without answers, as JSON lines that whet reads; returns them."""
    generator = random.Random(seed)
    prompts = [_text(lengths, lengths.prompt, generator) for _ in range(num_rows)]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return prompts


def _text(lengths: Lengths, mean: int, generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, cum_weights=WEIGHTS, k=lengths.draw(mean, generator)))
