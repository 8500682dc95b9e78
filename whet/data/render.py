"""Records -> token ids and what of them is trained, by the checkpoint's own chat template.

    Conversation(user "2+3?", assistant "5")
        ids      <|im_start|> user \\n 2 + 3 ? <|im_end|> \\n <|im_start|> assistant \\n 5 <|im_end|>
        weights       0         0   0 0 0 0 0     0       0       0          0        0 1     1

Every trained turn stands behind exactly the ids an engine would be given to produce it. Some templates rewrite earlier
turns once the conversation goes on (Qwen3 removes their <think> parts): such a conversation becomes several rows, each
turn trained once, in the row where it is the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

from whet.config.objective import Margin
from whet.data.answers import Answered, answers_of, tools_of, values_of
from whet.data.fit import OVERLONG, PROMPT_OVERLONG, SAME_AFTER_CUT, fit
from whet.data.ledger import Ledger
from whet.data.pieces import definition_of
from whet.data.places import expanded, pictures_in, widened
from whet.data.rendered import Rendered, RenderedGroup
from whet.data.template import Template
from whet.errors import DataError, UserError
from whet.schema.pictures import Picture
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
from whet.schema.rollouts import Asked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from whet.data.pictures import PictureReader

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

VERSION = 2
"""Raise it when rendering changes: it is part of the fingerprint, which keys caches."""


CHUNK = 256
"""Records whose texts are tokenised together."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn to train: the template's text up to where it begins, and with it."""

    prompt: str
    answered: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A record as text, still to be tokenised."""

    record: Conversation | Answered
    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...] = ()
    """Those of all turns, in order; the text of each turn holds a placeholder for the first of them."""

    @property
    def texts(self) -> list[str]:
        return [text for turn in self.turns for text in (turn.prompt, turn.answered)]


class Renderer:
    """Renders records for one tokenizer. Raises ModelError where its template cannot be trained on."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None, reader: PictureReader | None = None,
        margin: Margin = "none",
    ) -> None:  # fmt: skip
        """`reader` is the checkpoint's, where it takes pictures; without one, records with pictures are refused.
        `margin` says where preferences get theirs from (reward models)."""
        self.template, self.system, self.reader, self.margin = Template(tokenizer, reader), system, reader, margin
        self.end_id = self.template.end_id
        """Token that ends an assistant turn; an engine has to stop there."""

    @property
    def place_id(self) -> int | None:
        """The placeholder of rows with pictures; None where there are none."""
        return None if self.reader is None else self.reader.place_id

    def speaking(self, system: str | None) -> Renderer:
        """The same with another system message."""
        return Renderer(self.template.tokenizer, system=system, reader=self.reader, margin=self.margin)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same record could give other ids or values."""
        tokenizer = self.template.tokenizer
        state = sorted(tokenizer.get_vocab().items()) if not tokenizer.is_fast else definition_of(tokenizer)
        special = sorted(tokenizer.special_tokens_map.items())
        seen = "" if self.reader is None else self.reader.fingerprint
        asked = self.system, self.margin
        parts = (VERSION, self.template.chosen, self.template.probe_text(), asked, special, state, seen)
        return sha256(repr(parts).encode()).hexdigest()

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, origin: Origin = NOWHERE
    ) -> tuple[int, ...]:
        """Ids up to where the assistant begins to speak."""
        return self.ask(messages, tools, origin=origin).prompt_ids

    def begun(self, messages: Sequence[Message], answers: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of the prompt and the beginning of an answer, for each of several beginnings."""
        asked = self.template.text(under_system(messages, self.system), (), ask=True, origin=NOWHERE)
        pictures = self._read(messages, NOWHERE)
        texts = [asked + self.template.words(answer) for answer in answers]
        ids = self.template.pieces.ids(texts)
        return [tuple(self._expanded(ids[text], pictures)) for text in texts]

    def ask(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, origin: Origin = NOWHERE
    ) -> Asked:
        """What an engine is asked."""
        turns = under_system(messages, self.system)
        ids = self.template.ids(self.template.text(turns, tools, ask=True, origin=origin))
        pictures = self._read(messages, origin)
        return Asked(
            prompt_ids=tuple(self._expanded(ids, pictures)),
            messages=tuple(turns),
            tools=tuple(tools),
            pictures=pictures,
        )

    def conversation(self, record: Conversation) -> Rendered:
        """The conversation as one row. Turns that the template rewrites later are trained by `conversations` only."""
        return replace(self.conversations(record)[-1], last=True)

    def conversations(self, record: Conversation) -> tuple[Rendered, ...]:
        """The rows in which every assistant turn is trained exactly once; one row for most templates.

        Raises DataError where nothing in the record is to be trained.
        """
        draft = self.draft(record)
        return self._conversation_rows(draft, self.template.pieces.ids(draft.texts))

    def group(self, record: Answered) -> RenderedGroup:
        """Prompt and responses. Raises DataError where a response is more than one turn."""
        draft = self.draft(record)
        return self._group_row(draft, self.template.pieces.ids(draft.texts))

    def draft(self, record: Conversation | Answered) -> Draft:
        """The texts to tokenise. Raises DataError where the template refuses the turns, or there is nothing to train,

        and ModelError where the template does not continue its own prompt.
        """
        match record:
            case Conversation():
                turns = self._trained_turns(record)
                return Draft(record=record, turns=turns, pictures=self._read(record.messages, record.origin))
            case Preference() | Rating() | Ranking() | Scored():
                messages, tools = under_system(record.prompt, self.system), tools_of(record)
                answers = answers_of(record)
                _no_pictures(answers, record.origin)
                prompt = self.template.text(messages, tools, ask=True, origin=record.origin)
                answered = tuple(
                    Turn(prompt, self.template.answered(prompt, (*messages, answer), tools, record.origin))
                    for answer in answers
                )
                return Draft(record=record, turns=answered, pictures=self._read(record.prompt, record.origin))

    def rows(self, draft: Draft, ids: Mapping[str, list[int]]) -> tuple[Rendered | RenderedGroup, ...]:
        """The rows of a draft, given the ids of its texts. Raises ModelError where answers cannot be told apart."""
        match draft.record:
            case Conversation():
                return self._conversation_rows(draft, ids)
            case _:
                return (self._group_row(draft, ids),)

    def _conversation_rows(self, draft: Draft, ids: Mapping[str, list[int]]) -> tuple[Rendered, ...]:
        rows: list[tuple[list[int], list[float]]] = []
        origin = draft.record.origin
        for turn in draft.turns:
            prompt, response = ids[turn.prompt], self.template.response(turn.prompt, turn.answered, ids, origin)
            earlier: list[float] = []
            if rows and prompt[: len(rows[-1][0])] == rows[-1][0]:
                earlier = rows.pop()[1]
            weights = earlier + [0.0] * (len(prompt) - len(earlier)) + [turn.weight] * len(response)
            rows.append((prompt + response, weights))
        final = len(rows) - 1
        return tuple(self._row(ids, weights, draft, last=number == final) for number, (ids, weights) in enumerate(rows))

    def _row(self, ids: list[int], weights: list[float], draft: Draft, *, last: bool) -> Rendered:
        pictures: tuple[Picture, ...] = ()
        if self.reader is not None and draft.pictures:
            place = self.reader.place_id
            pictures = draft.pictures[: ids.count(place)]
            ids, weights = expanded(ids, pictures, place), widened(ids, weights, pictures, place)
        origin = draft.record.origin
        return Rendered(ids=tuple(ids), weights=tuple(weights), origin=origin, last=last, pictures=pictures)

    def _group_row(self, draft: Draft, ids: Mapping[str, list[int]]) -> RenderedGroup:
        record = draft.record
        assert not isinstance(record, Conversation), "a conversation has no answers beside each other"
        return RenderedGroup(
            prompt_ids=tuple(self._expanded(ids[draft.turns[0].prompt], draft.pictures)),
            response_ids=tuple(
                tuple(self.template.response(turn.prompt, turn.answered, ids, record.origin)) for turn in draft.turns
            ),
            values=values_of(record, self.margin),
            origin=record.origin,
            pictures=draft.pictures,
        )

    def _expanded(self, ids: list[int], pictures: Sequence[Picture]) -> list[int]:
        return expanded(ids, pictures, self.reader.place_id) if self.reader is not None and pictures else ids

    def _read(self, messages: Sequence[Message], origin: Origin) -> tuple[Picture, ...]:
        """The pictures of the turns. Raises DataError where one cannot be used."""
        if self.reader is None:
            return ()  # the template has refused them by now
        return tuple(self.reader.read(source, origin) for source in pictures_in(messages))

    def _trained_turns(self, record: Conversation) -> tuple[Turn, ...]:
        messages, origin = under_system(record.messages, self.system), record.origin
        turns = []
        for index, message in enumerate(messages):
            if message.role != "assistant" or message.weight <= 0:
                continue
            _no_pictures((message,), origin)
            prompt = self.template.text(messages[:index], record.tools, ask=True, origin=origin)
            answered = self.template.answered(prompt, messages[: index + 1], record.tools, origin)
            turns.append(Turn(prompt, answered, message.weight))
        if not turns:
            raise DataError("no assistant turn to learn from", file=origin.file, line=origin.line, field="messages")
        return tuple(turns)


def under_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The plan's system message in front of those that have none."""
    if system is None or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message("system", system), *messages)


def _no_pictures(answers: Sequence[Message], origin: Origin) -> None:
    """Raises DataError for an answer with a picture: a model that reads pictures writes none."""
    if pictures_in(answers):
        raise DataError(
            "an answer holds a picture, and no model here can learn to write one", file=origin.file, line=origin.line,
            field="images", fix="move it into the user's turn, or give that turn weight 0",
        )  # fmt: skip


def render_records(
    renderer: Renderer, records: Iterable[Record], on_bad_row: Literal["error", "drop"], ledger: Ledger
) -> Iterator[Rendered | RenderedGroup]:
    """Rows of records, for `fit`. A record the template refuses stops everything, or is dropped.

    Raises TypeError for a prompt, which has nothing to learn, and ModelError where the template itself is at fault.
    """
    return chain.from_iterable(render_each(renderer, records, on_bad_row, ledger))


def render_each(
    renderer: Renderer, records: Iterable[Record], on_bad_row: Literal["error", "drop"], ledger: Ledger
) -> Iterator[tuple[Rendered | RenderedGroup, ...]]:
    """The same, the rows of each record by themselves: none where it is dropped."""
    records = iter(records)
    while chunk := list(islice(records, CHUNK)):
        drafts = [_draft(renderer, record) for record in chunk]
        ids = renderer.template.pieces.ids(text for draft in drafts if isinstance(draft, Draft) for text in draft.texts)
        for record, draft in zip(chunk, drafts, strict=True):
            try:
                if isinstance(draft, UserError):
                    raise draft
                rows = renderer.rows(draft, ids)
            except DataError as error:
                if on_bad_row == "error":
                    raise
                ledger.drop(error.problem, record.origin, str(error))
                rows = ()
            yield rows


def _draft(renderer: Renderer, record: Record) -> Draft | UserError:
    """The record's texts, or what is wrong with it: to be said when its turn comes."""
    if isinstance(record, Prompt):
        raise TypeError("a prompt is not trained on")
    try:
        return renderer.draft(record)
    except UserError as error:
        return error
