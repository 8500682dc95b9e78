"""Records of one kind read as another, where that is sound.

Any record is a prompt once its answers are set aside; a conversation's last answer then becomes the reference. Ranked
and scored answers become preferences. Nothing becomes a conversation: that would train on answers nobody approved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from whet.data.preferences import NothingToLearn
from whet.data.row import quote
from whet.errors import DataError
from whet.schema.records import (
    Conversation,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    RecordKind,
    Scored,
    kind_of,
)

REFERENCE_NAMES = ("reference", "final", "ground_truth")
"""Columns that hold the gold answer of a prompt, the first one present winning, also over an answer in the turns."""
WORKED_NAMES = ("solution", "target")
"""Columns that hold it where nothing else does: beside an `answer` they are the worked way to it."""

MADE_FROM: dict[RecordKind, tuple[RecordKind, ...]] = {
    "conversation": ("conversation",),
    "preference": ("preference", "ranking", "scored"),
    "rating": ("rating",),
    "ranking": ("ranking",),
    "scored": ("scored",),
    "prompt": ("prompt", "conversation", "preference", "rating", "ranking", "scored"),
}
"""Kind wanted -> kinds it can be made from."""


def as_kind(record: Record, kind: RecordKind) -> Sequence[Record]:
    """The record as the kind asked for. Raises NothingToLearn, or DataError where the record lacks what that needs."""
    match kind, record:
        case "conversation", Conversation():
            return (_learnable(record),)
        case "prompt", _:
            return (as_prompt(record),)
        case "preference", Ranking():
            return pairs_of_ranking(record)
        case "preference", Scored():
            return (best_against_worst(record),)
        case _ if kind == kind_of(record):
            return (record,)
        case _:
            raise DataError(
                f"is a {kind_of(record)}, and no {kind} can be made of it",
                file=record.origin.file,
                line=record.origin.line,
            )


def _learnable(record: Conversation) -> Conversation:
    """The conversation, if it has an answer to learn and something before it that it answers."""
    place = record.origin
    index = next((i for i, turn in enumerate(record.messages) if turn.role == "assistant" and turn.weight > 0), None)
    if index is None:
        raise DataError(
            "no assistant turn to learn from", file=place.file, line=place.line, field="messages",
            fix="add an answer, or read rows that are prompts alone with format=prompt",
        )  # fmt: skip
    if not any(turn.role in ("user", "tool") for turn in record.messages[:index]):
        raise DataError(
            "begins with an answer to nothing",
            file=place.file,
            line=place.line,
            field=f"messages[{index}]",
            found=quote(record.messages[index].text),
            fix="remove that turn, give it weight 0, or set data.on_bad_row=drop",
        )
    return record


def as_prompt(record: Record) -> Prompt:
    """The question alone; what a model must not see goes to `reference`."""
    answer = None
    match record:
        case Prompt():
            return record
        case Conversation():
            reference = reference_of(record.columns)
            messages = record.messages
            if messages[-1].role == "assistant":
                messages, reference = messages[:-1], reference if reference is not None else messages[-1].text
                answer = record.messages[-1].text or None
            reference = reference if reference is not None else column(record.columns, WORKED_NAMES)
            tools = record.tools
        case Preference() | Rating() | Ranking() | Scored():
            messages, reference, tools = record.prompt, reference_of(record.columns), record.tools
    if not any(message.role in ("user", "tool") for message in messages):
        raise DataError("no user turn to answer", file=record.origin.file, line=record.origin.line, field="messages")
    return Prompt(
        messages=messages, reference=reference, answer=answer, tools=tools, columns=record.columns, origin=record.origin
    )


def reference_of(columns: Mapping[str, Any]) -> str | None:
    """The gold answer among a row's columns (also verl's `reward_model.ground_truth`), or None."""
    inner = columns.get("reward_model")
    found = column(columns, REFERENCE_NAMES)
    return column(inner, ("ground_truth",)) if found is None and isinstance(inner, Mapping) else found


def column(columns: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these columns that holds a text or a number; what is not finite is none (pandas' empty cell)."""
    for name in names:
        value = columns.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
    return None


def pairs_of_ranking(record: Ranking) -> tuple[Preference, ...]:
    """Every pair of differently ranked responses, the better one chosen."""
    order = sorted(range(len(record.responses)), key=lambda index: record.ranks[index])
    pairs = tuple(
        Preference(
            prompt=record.prompt,
            chosen=(Message("assistant", record.responses[better]),),
            rejected=(Message("assistant", record.responses[worse]),),
            tools=record.tools,
            columns=record.columns,
            origin=record.origin,
        )
        for better, worse in combinations(order, 2)
        if record.ranks[better] < record.ranks[worse]
    )
    if not pairs:
        raise NothingToLearn("all responses rank the same")
    return pairs


def best_against_worst(record: Scored) -> Preference:
    """The response with the highest number against the one with the lowest (the first, where several have it)."""
    indices = range(len(record.values))
    best, worst = max(indices, key=lambda i: record.values[i]), min(indices, key=lambda i: record.values[i])
    if record.values[best] == record.values[worst]:
        raise NothingToLearn("all responses have the same score")
    return Preference(
        prompt=record.prompt,
        chosen=(Message("assistant", record.responses[best]),),
        rejected=(Message("assistant", record.responses[worst]),),
        chosen_score=record.values[best],
        rejected_score=record.values[worst],
        tools=record.tools,
        columns=record.columns,
        origin=record.origin,
    )
