"""Rejection sampling: which answers count as right, which of those are kept, and the parts that may be the user's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whet.config.base import Section
from whet.config.values import Place


class Accept(Section):
    """Which answers are right, and how many of them become training rows."""

    min_score: float = 1.0
    """An answer is right from this score on; a rule's full marks are 1."""
    max_per_prompt: int | None = Field(4, ge=1)
    """Right answers kept of one prompt; null keeps all."""
    order: Literal["first", "shortest", "varied"] = "first"
    """Which are kept: `first` as they were drawn, `shortest`, or `varied` (each the least like those before it)."""
    unique: bool = True
    """Keep answers of the same text once; case, width of characters and blanks make no difference."""
    cut: bool = False
    """Also keep right answers that ended at `rollout.max_new_tokens`: who learns from them does not learn to stop."""
    together: str | None = None
    """Column whose value some prompts share: they are solved when each of them is. `item` keeps both orders of a
    comparison together, so that unsolved.jsonl has no more of one than of the other."""
    pairs_per_prompt: int = Field(1, ge=0)
    """Most pairs of a right and a wrong answer in preference.jsonl, each answer in one of them only."""


class Functions(Section):
    """Functions of yours in place of whet's own reading, formatting, generating and saving; each
    `module:function` or `FILE.py:function`. Judging is replaced by `reward.type=custom`."""

    read: Place | None = None
    """read(files) -> rows: each a text or a mapping with `prompt` (or `messages`) and columns of its own.
    It is called once a pass over the prompts, and gives the same rows every time."""
    format: Place | None = None
    """format(row) -> a text or a list of messages: what the model is asked. The row is a mapping with `messages`,
    `reference` and the columns."""
    generate: Place | None = None
    """generate(requests) -> answers, in their order. A request is a mapping with `key`, `messages`, `seed` and the
    keys of the sampling; an answer is a text, null for none, or a mapping with `text` and, if known,
    `finish_reason` (`stop` or `length`)."""
    save: Place | None = None
    """save(rows, folder): rows is an iterator over the rows of groups.jsonl, each answer with its `fate`; folder is
    the stage's. The files of whet's own are then not written."""
