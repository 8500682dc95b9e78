"""Rows of a file on their way to a reward model: every row with answers, in order, some of them at a time.

    file -> records with answers -> token ids -> windows of rows, whose batches hold rows of similar length

A row that cannot be scored stays in its place, with the reason. No more than a window is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from whet.config.data import Data, Source
from whet.data.answers import Answered, answers_of, tools_of
from whet.data.convert import writer_of
from whet.data.fit import fit
from whet.data.formats import parse_row
from whet.data.ledger import Ledger
from whet.data.locate import locate, read_place
from whet.data.render import CHUNK, Draft, Renderer
from whet.data.rendered import RenderedGroup
from whet.data.sources import fewer_pictures, open_rows
from whet.errors import DataError
from whet.schema.records import Conversation, Origin, Preference, Prompt, Ranking, Rating, Record, Scored

WINDOW_ROWS = 4096
"""At most so many rows wait for their scores at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """A prompt and its answers, ready to be scored; or a row that will not be, and why."""

    origin: Origin
    group: RenderedGroup | None = None
    problem: str | None = None
    """Why there is no group, with its place."""
    reason: str = ""
    """The same without the place, as it is counted."""
    truncated: bool = False
    """An answer was longer than `data.max_length`: its beginning is scored."""
    order: tuple[float, ...] = ()
    """What the file says of the answers, higher is better; empty where it says nothing."""
    content: Mapping[str, Any] = field(default_factory=dict)
    """Prompt and answers, where they were asked for."""

    @property
    def num_tokens(self) -> int:
        return self.group.num_tokens if self.group is not None else 0


def read_rows(
    file: str, data: Data, renderer: Renderer, notes: Ledger, *, with_content: bool = False
) -> Iterator[ScoreRow]:
    """Every row of a file, directory or hub data set, as `data` says how to read and cut it.

    Raises DataError for a row that cannot be used, unless `data.on_bad_row` is drop: it then has a `problem`.
    """
    records = read_answers(file, data, notes)
    while chunk := list(islice(records, CHUNK)):
        drafts = [_draft(renderer, record) for record in chunk]
        ids = renderer.template.pieces.ids(text for draft in drafts if isinstance(draft, Draft) for text in draft.texts)
        for draft in drafts:
            try:
                if isinstance(draft, DataError):
                    raise draft
                (group,) = renderer.rows(draft, ids)
                content = content_of(draft.record) if with_content else {}
            except DataError as error:
                if data.on_bad_row == "error":
                    raise
                origin = Origin(file=error.file or file, line=error.line or 0)
                yield ScoreRow(origin=origin, problem=str(error), reason=reason_of(error))
            else:
                assert isinstance(group, RenderedGroup), "records with answers become groups"
                yield _fitted(group, data, order_of(draft.record), content)


def read_answers(file: str, data: Data, notes: Ledger) -> Iterator[Answered | DataError]:
    """The records of a file in its order, as a prompt with answers; what cannot be one is an error in its place."""
    place = locate(Source(path=file), data, {})
    for rows in read_place(place, notes):
        opened = open_rows(rows, place)
        for row in opened.rows:
            if isinstance(row, DataError):
                yield row
            elif opened.format == "auto":
                yield row.error("comes after many unreadable rows", field="format", fix="name it: format=...")
            else:
                notes.formats[opened.name] = opened.format
                try:
                    records = [answered(record) for record in parse_row(row, opened.format)]
                    most = data.max_images
                    yield from records if most is None else [fewer_pictures(one, most, notes) for one in records]
                except DataError as error:
                    yield error


def answered(record: Record) -> Answered:
    """The record as a prompt with answers; of a conversation, its last assistant turn is the answer.

    Raises DataError where nothing has been answered.
    """
    match record:
        case Preference() | Rating() | Ranking() | Scored():
            return record
        case Conversation(messages=messages):
            place = max((i for i, turn in enumerate(messages) if turn.role == "assistant"), default=0)
            if not place:
                raise _unanswered(record.origin)
            return Rating(
                prompt=messages[:place], response=(messages[place],), label=True, tools=record.tools,
                columns=record.columns, origin=record.origin,
            )  # fmt: skip
        case Prompt():
            raise _unanswered(record.origin)


def _unanswered(origin: Origin) -> DataError:
    return DataError(
        "has no response to score", file=origin.file, line=origin.line,
        fix="give conversations, preferences, ratings, rankings or scored rows",
    )  # fmt: skip


def order_of(record: Conversation | Answered) -> tuple[float, ...]:
    """A number for each answer, higher is better; nothing where the file does not compare them."""
    match record:
        case Preference():
            return 1.0, 0.0
        case Ranking(ranks=ranks):
            return tuple(-rank for rank in ranks)
        case Scored(values=values):
            return values
        case Rating() | Conversation():
            return ()


def content_of(record: Conversation | Answered) -> dict[str, Any]:
    """`prompt` and `responses`. Raises DataError for an answer that calls tools, which no text says."""
    assert not isinstance(record, Conversation), "an answered record"
    answers = answers_of(record)
    if any(answer.tool_calls for answer in answers):
        raise DataError(
            "has an answer that calls tools, which cannot be written as a text", file=record.origin.file,
            line=record.origin.line, fix="leave --with-content out",
        )  # fmt: skip
    prompt = writer_of("prompt")(Prompt(messages=record.prompt, tools=tuple(tools_of(record))))
    return {**prompt, "responses": [answer.text for answer in answers]}


def windows(rows: Iterator[ScoreRow], num_tokens: int) -> Iterator[list[ScoreRow]]:
    """The rows in lists of about so many tokens."""
    window: list[ScoreRow] = []
    total = 0
    for row in rows:
        window.append(row)
        total += row.num_tokens
        if total >= num_tokens or len(window) >= WINDOW_ROWS:
            yield window
            window, total = [], 0
    if window:
        yield window


def batches(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Positions of `lengths` in batches of at most `capacity`, the longest first; neighbours are of similar length.

    So little is lost where a model needs padded rows, and running out of memory shows at once. A longer one has a batch
    of its own.

    >>> batches([3, 9, 5, 4], 10)
    [[1], [2, 3], [0]]
    """
    parts: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[place] > room or not parts:
            parts.append([])
            room = capacity
        parts[-1].append(place)
        room -= lengths[place]
    return parts


def reason_of(error: DataError) -> str:
    """Field and problem, positions in lists left out."""
    return re.sub(r"\[\d+\]", "[]", " ".join(filter(None, (error.field, error.problem))))


def _draft(renderer: Renderer, record: Answered | DataError) -> Draft | DataError:
    """The record's texts, or what is wrong with it: to be said when its turn comes."""
    if isinstance(record, DataError):
        return record
    try:
        return renderer.draft(record)
    except DataError as error:
        return error


def _fitted(group: RenderedGroup, data: Data, order: tuple[float, ...], content: Mapping[str, Any]) -> ScoreRow:
    """The row at no more than `data.max_length` tokens, or why it is not scored."""
    account = Ledger(kept=1)
    fitted = fit([group], data.max_length, data.on_overlong, account)  # prompts are never cut, and so no pictures
    if not fitted:
        reason = next(iter(account.dropped))
        return ScoreRow(origin=group.origin, problem=reason, reason=reason, content=content)
    return ScoreRow(
        origin=group.origin, group=fitted[0], truncated=bool(account.truncated), order=order, content=content
    )
