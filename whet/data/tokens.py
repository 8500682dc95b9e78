"""Lengths in tokens, for checking and preview: the same rendering as in training, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whet.errors import ModelError
from whet.schema.records import Conversation, Message, Preference, Prompt, Ranking, Rating, Record, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from whet.config.model import Vision
    from whet.data.render import Renderer


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, without its model and without running code that comes with it.

    Raises ModelError where there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        found = str(error).strip().splitlines()
        raise ModelError(
            "has no tokenizer",
            file=path,
            found=found[0][:160] if found else None,
            fix="give a checkpoint directory or a hub id",
        ) from error
    return tokenizer


def load_renderer(path: str, system: str | None, vision: Vision | None = None) -> Renderer:
    """How a checkpoint writes records, pictures included: by its own chat template, and its processor's limits of
    pixels where `vision` has none.

    A plan's `model.chat_template` is not known here; with it training writes other rows.
    """
    from whet.data.pictures import picture_reader
    from whet.data.render import Renderer

    least, most = (None, None) if vision is None else (vision.min_pixels, vision.max_pixels)
    reader = picture_reader(path, min_pixels=least, max_pixels=most)
    return Renderer(load_tokenizer(path), system=system, reader=reader)


def texts_of(record: Record) -> tuple[Sequence[Message], Sequence[str]]:
    """Turns of a record, and its answers that are plain texts."""
    match record:
        case Conversation() | Prompt():
            return record.messages, ()
        case Preference():
            return (*record.prompt, *record.chosen, *record.rejected), ()
        case Rating():
            return (*record.prompt, *record.response), ()
        case Ranking() | Scored():
            return record.prompt, record.responses


class LengthOf:
    """Token counts by the checkpoint's template: (longest row of the record, its prompt)."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        tokenizer = renderer.template.tokenizer
        self._special = tuple(token for token in tokenizer.all_special_tokens if len(token) > 1)

    @property
    def folds_system(self) -> bool:
        """Whether system texts have to begin the first question, since the template has no place for them."""
        return not self._renderer.template.knows_system

    def __call__(self, record: Record) -> tuple[int, int]:
        match record:
            case Conversation():
                rows = self._renderer.conversations(record)
                longest = max(rows, key=lambda row: len(row.ids))
                return len(longest.ids), next(index for index, weight in enumerate(longest.weights) if weight)
            case Preference() | Rating() | Ranking() | Scored():
                group = self._renderer.group(record)
                prompt = len(group.prompt_ids)
                return prompt + max(len(ids) for ids in group.response_ids), prompt
            case Prompt():
                prompt = len(self._renderer.prompt(record.messages, record.tools, origin=record.origin))
                return prompt, prompt

    def has_special(self, record: Record) -> bool:
        """Whether somebody's words would be read as the checkpoint's control tokens."""
        messages, answers = texts_of(record)
        return any(
            token in text for text in (*(message.text for message in messages), *answers) for token in self._special
        )
