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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from whet.data.ledger import Ledger
from whet.data.template import Template
from whet.errors import DataError
from whet.schema.records import NOWHERE, Conversation, Message, Origin, Preference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Raise it when rendering changes: it is part of the fingerprint, which keys caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One row to train on."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    """Weight of each token in the loss; 0 is not trained."""
    origin: Origin = NOWHERE
    last: bool = True
    """False where more rows of the same record follow."""

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPair:
    """One prompt and two responses, each ending with the end-of-turn token unless it was truncated."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    origin: Origin = NOWHERE

    @property
    def num_tokens(self) -> int:
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


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


def _state(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fast tokenizer's whole definition, without the padding and truncation that an earlier call left in it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**state, "padding": None, "truncation": None}, sort_keys=True)


OVERLONG = "longer than max_length"
PROMPT_OVERLONG = "prompt alone longer than max_length"
SAME_AFTER_CUT = "chosen and rejected equal once truncated"

Row = TypeVar("Row", Rendered, RenderedPair)


def fit(
    rows: Iterable[Row], max_length: int, on_overlong: Literal["truncate", "drop", "error"], ledger: Ledger
) -> list[Row]:
    """The rows at no more than `max_length` tokens; whoever is cut or dropped goes into the ledger.

    A response is cut at its end, and then learns no end of turn. Under `error` the first longer row raises DataError.
    """
    fitted: list[Row] = []
    record: list[tuple[Row, Row | str]] = []
    for row in rows:
        record.append((row, _cut(row, max_length, on_overlong)))
        if isinstance(row, RenderedPair) or row.last:
            fitted += _account(record, ledger)
            record = []
    return fitted


def _account(record: list[tuple[Row, Row | str]], ledger: Ledger) -> list[Row]:
    """What is left of a record's rows. It counts as dropped where nothing is, as truncated where a part is missing."""
    kept = [result for _, result in record if not isinstance(result, str)]
    origin = record[0][0].origin
    if not kept:
        ledger.drop(next(result for _, result in record if isinstance(result, str)), origin)
    elif len(kept) < len(record) or any(result is not row for row, result in record):
        ledger.truncate(origin)
    return kept


def _cut(row: Row, max_length: int, on_overlong: Literal["truncate", "drop", "error"]) -> Row | str:
    """The row itself where it fits, a shorter one, or the reason to drop it."""
    match row:
        case Rendered():
            length = len(row.ids)
        case RenderedPair():
            length = len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids))
    if length <= max_length:
        return row
    match on_overlong:
        case "error":
            raise DataError(
                f"{length} tokens, and data.max_length is {max_length}",
                file=row.origin.file,
                line=row.origin.line,
                fix="raise data.max_length, or set data.on_overlong to truncate or drop",
            )
        case "drop":
            return OVERLONG
        case "truncate":
            return _truncated(row, max_length)


def _truncated(row: Row, max_length: int) -> Row | str:
    match row:
        case Rendered():
            # Tokens after the last trained one teach nothing: they go with the cut.
            end = max((i + 1 for i, weight in enumerate(row.weights[:max_length]) if weight), default=0)
            return replace(row, ids=row.ids[:end], weights=row.weights[:end]) if end else PROMPT_OVERLONG
        case RenderedPair():
            room = max_length - len(row.prompt_ids)
            if room <= 0:
                return PROMPT_OVERLONG
            if row.chosen_ids[:room] == row.rejected_ids[:room]:
                return SAME_AFTER_CUT
            return replace(row, chosen_ids=row.chosen_ids[:room], rejected_ids=row.rejected_ids[:room])
