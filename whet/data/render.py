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
from whet.data.rendered import Rendered, RenderedGroup
from whet.data.template import Template
from whet.errors import DataError
from whet.schema.records import (
    NOWHERE,
    Conversation,
    Message,
    Origin,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    Scored,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "OVERLONG",
    "PROMPT_OVERLONG",
    "SAME_AFTER_CUT",
    "Rendered",
    "RenderedGroup",
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

    def group(self, record: Preference | Rating | Ranking | Scored) -> RenderedGroup:
        """Prompt and responses. Raises DataError where a response is more than one turn."""
        messages, tools = self._with_system(record.prompt), _tools(record)
        prompt = self.template.text(messages, tools, ask=True, origin=record.origin)
        prompt_ids = self.template.ids(prompt)
        responses = tuple(
            tuple(self.template.response(prompt, prompt_ids, (*messages, answer), tools, record.origin))
            for answer in answers_of(record)
        )
        return RenderedGroup(
            prompt_ids=tuple(prompt_ids), response_ids=responses, values=values_of(record), origin=record.origin
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
) -> Iterator[Rendered | RenderedGroup]:
    """Rows of records, for `fit`. A record the template refuses stops everything, or is dropped.

    Raises TypeError for a prompt, which has nothing to learn, and ModelError where the template itself is at fault.
    """
    for record in records:
        try:
            match record:
                case Conversation():
                    yield from renderer.conversations(record)
                case Preference() | Rating() | Ranking() | Scored():
                    yield renderer.group(record)
                case Prompt():
                    raise TypeError("a prompt is not trained on")
        except DataError as error:
            if on_bad_row == "error":
                raise
            ledger.drop(error.problem, record.origin, str(error))


def answers_of(record: Preference | Rating | Ranking | Scored) -> tuple[Message, ...]:
    """The answers, a preference's chosen one first. Raises DataError where one of them is several turns."""
    match record:
        case Preference():
            return _only(record.chosen, "chosen", record.origin), _only(record.rejected, "rejected", record.origin)
        case Rating():
            return (_only(record.response, "response", record.origin),)
        case Ranking() | Scored():
            return tuple(Message("assistant", text) for text in record.responses)


def values_of(record: Preference | Rating | Ranking | Scored) -> tuple[float, ...]:
    """What the record says of each answer; see `RenderedGroup.values`."""
    match record:
        case Preference(margin=float() | int() as margin):
            return (float(margin), 0.0)
        case Preference(chosen_score=float() | int() as chosen, rejected_score=float() | int() as rejected):
            return (float(chosen - rejected), 0.0)
        case Preference():
            return ()
        case Rating():
            return (float(record.label),)
        case Ranking():
            return record.ranks
        case Scored():
            return record.values


def _only(turns: Sequence[Message], field: str, origin: Origin) -> Message:
    if len(turns) == 1:
        return turns[0]
    raise DataError(
        f"has {len(turns)} turns, and one answer is compared with another",
        file=origin.file,
        line=origin.line,
        field=field,
        fix="move what the answers have in common into the prompt",
    )


def _tools(record: Preference | Rating | Ranking | Scored) -> Sequence[Mapping[str, Any]]:
    return record.tools if isinstance(record, Preference | Rating) else ()


def _state(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fast tokenizer's whole definition, without the padding and truncation that an earlier call left in it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**state, "padding": None, "truncation": None}, sort_keys=True)
