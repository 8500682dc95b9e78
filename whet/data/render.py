"""Records -> token ids and what of them is trained, by the checkpoint's own chat template.

    Conversation(user "2+3?", assistant "5")
        ids      <|im_start|> user \\n 2 + 3 ? <|im_end|> \\n <|im_start|> assistant \\n 5 <|im_end|>
        weights       0         0   0 0 0 0 0     0       0       0          0        0 1     1

Every trained turn stands behind exactly the ids an engine would be given to produce it. Some templates rewrite earlier
turns once the conversation goes on (Qwen3 removes their <think> parts): such a conversation becomes several rows, each
turn trained once, in the row where it is the last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from whet.data.fit import OVERLONG, PROMPT_OVERLONG, SAME_AFTER_CUT, fit
from whet.data.ledger import Ledger
from whet.data.rendered import Rendered, RenderedPair
from whet.data.template import Template
from whet.errors import DataError
from whet.schema.records import NOWHERE, Conversation, Message, Origin, Preference, Record, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "OVERLONG",
    "PROMPT_OVERLONG",
    "SAME_AFTER_CUT",
    "Rendered",
    "RenderedPair",
    "Renderer",
    "fit",
    "render_records",
]

VERSION = 1
"""Raise it when rendering changes: it is part of the fingerprint, which keys caches."""


class Renderer:
    """Renders records for one tokenizer. Raises ModelError where its template cannot be trained on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None) -> None:
        self.template, self.system = Template(tokenizer), system
        self.end_id = self.template.end_id
        """Token that ends an assistant turn; an engine has to stop there."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same record could give other ids."""
        tokenizer = self.template.tokenizer
        state = sorted(tokenizer.get_vocab().items()) if not tokenizer.is_fast else _state(tokenizer)
        parts = (VERSION, tokenizer.chat_template, self.system, sorted(tokenizer.special_tokens_map.items()), state)
        return sha256(repr(parts).encode()).hexdigest()

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, origin: Origin = NOWHERE
    ) -> tuple[int, ...]:
        """Ids up to where the assistant begins to speak."""
        return tuple(self.template.ids(self.template.text(self._with_system(messages), tools, ask=True, origin=origin)))

    def conversation(self, record: Conversation) -> Rendered:
        """The conversation as one row. Turns that the template rewrites later are trained by `conversations` only."""
        return replace(self.conversations(record)[-1], last=True)

    def conversations(self, record: Conversation) -> tuple[Rendered, ...]:
        """The rows in which every assistant turn is trained exactly once; one row for most templates.

        Raises DataError where nothing in the record is to be trained.
        """
        messages = self._with_system(record.messages)
        targets = [
            index for index, message in enumerate(messages) if message.role == "assistant" and message.weight > 0
        ]
        if not targets:
            raise DataError(
                "no assistant turn to learn from", file=record.origin.file, line=record.origin.line, field="messages"
            )
        rows: list[tuple[list[int], list[float]]] = []
        for index in targets:
            prompt, response = self._answer(messages, index, record)
            shared = 0
            if rows and prompt[: len(rows[-1][0])] == rows[-1][0]:
                earlier = rows.pop()[1]
                shared = len(earlier)
            else:
                earlier = []
            weights = earlier + [0.0] * (len(prompt) - shared) + [messages[index].weight] * len(response)
            rows.append((prompt + response, weights))
        final = len(rows) - 1
        return tuple(
            Rendered(ids=tuple(ids), weights=tuple(weights), origin=record.origin, last=number == final)
            for number, (ids, weights) in enumerate(rows)
        )

    def preference(self, record: Preference) -> RenderedPair:
        """Prompt and both responses. Raises DataError where a response is more than one turn."""
        messages = self._with_system(record.prompt)
        prompt = self.template.text(messages, record.tools, ask=True, origin=record.origin)
        prompt_ids = self.template.ids(prompt)
        responses = []
        for field, turns in (("chosen", record.chosen), ("rejected", record.rejected)):
            if len(turns) != 1:
                raise DataError(
                    f"has {len(turns)} turns, and a pair compares one answer with another",
                    file=record.origin.file,
                    line=record.origin.line,
                    field=field,
                    fix="move what both have in common into the prompt",
                )
            responses.append(
                self.template.response(prompt, prompt_ids, (*messages, *turns), record.tools, record.origin)
            )
        chosen, rejected = responses
        return RenderedPair(
            prompt_ids=tuple(prompt_ids), chosen_ids=tuple(chosen), rejected_ids=tuple(rejected), origin=record.origin
        )

    def _answer(self, messages: Sequence[Message], index: int, record: Conversation) -> tuple[list[int], list[int]]:
        """Ids of what stands before turn `index`, and of the turn."""
        prompt = self.template.text(messages[:index], record.tools, ask=True, origin=record.origin)
        prompt_ids = self.template.ids(prompt)
        return prompt_ids, self.template.response(
            prompt, prompt_ids, messages[: index + 1], record.tools, record.origin
        )

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self.system is None or (messages and messages[0].role == "system"):
            return messages
        return (Message("system", self.system), *messages)


def render_records(
    renderer: Renderer, records: Iterable[Record], on_bad_row: Literal["error", "drop"], ledger: Ledger
) -> Iterator[Rendered | RenderedPair]:
    """Rows of conversations and preferences, for `fit`. A record the template refuses stops everything, or is dropped.

    Raises TypeError for a record of another kind, and ModelError where the template itself is at fault.
    """
    for record in records:
        try:
            match record:
                case Conversation():
                    yield from renderer.conversations(record)
                case Preference():
                    yield renderer.preference(record)
                case _:
                    raise TypeError(f"a {kind_of(record)} is not trained on")
        except DataError as error:
            if on_bad_row == "error":
                raise
            ledger.drop(error.problem, record.origin, str(error))


def _state(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fast tokenizer's whole definition, without the padding and truncation that an earlier call left in it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**state, "padding": None, "truncation": None}, sort_keys=True)
