"""Formats whose rows grade answers one by one: labels, ranks, rewards, weights."""

from __future__ import annotations

import math
from typing import Any

from whet.data.conversations import (
    ANSWER_NAMES,
    TURNS_NAMES,
    answer_turns,
    has_turns,
    history,
    instruction,
    prompt_turns,
)
from whet.data.images import place_images
from whet.data.messages import read_messages, with_system
from whet.data.preferences import check_prompt, has_any
from whet.data.row import Row, kind_of_value
from whet.data.tools import read_tools
from whet.schema.records import Message, Ranking, Rating, Scored

LABEL_NAMES = ("label", "kto_tag")
RANK_NAMES = ("rankings", "ranks", "ranking")
VALUE_NAMES = ("reward", "score")
VALUES_NAMES = ("rewards", "scores")
SUM_TOLERANCE = 1e-3
"""How far from 1 a row's weights may sum; written with few digits they miss it by a little."""


def ultrafeedback(row: Row) -> Scored:
    """UltraFeedback as first published: an instruction and completions, each with its score."""
    responses, values = [], []
    for index, completion in enumerate(row.listed("completions")):
        field = f"completions[{index}]"
        if not isinstance(completion, dict):
            raise row.error(f"is {kind_of_value(completion)}, not an object", field=field, found=completion)
        inner = Row({f"{field}.{key}": value for key, value in completion.items()}, row.origin)
        names = tuple(f"{field}.{key}" for key in ("overall_score", "score", "fine-grained_score"))
        score = inner.maybe_number(*names)
        if score is None:
            inner.take(names[0])
        else:
            responses.append(inner.text(f"{field}.response"))
            values.append(score)
    return Scored(
        prompt=_shown(row, (*history(row), Message("user", instruction(row)))),
        responses=tuple(responses),
        values=tuple(values),
        kind="reward",
        tools=read_tools(row),
        columns=row.rest(),
        origin=row.origin,
    )


def kto(row: Row) -> Rating:
    """A conversation (or prompt and completion) and a `label`: its last answer is good or bad."""
    label = _label(row, row.which(LABEL_NAMES))
    turns = (
        (*prompt_turns(row), *answer_turns(row, row.which(ANSWER_NAMES)))
        if not has_any(row, TURNS_NAMES)
        else read_messages(row, row.which(TURNS_NAMES))
    )
    turns = place_images(row, with_system(row, turns), listed=has_turns(row))
    if turns[-1].role != "assistant":
        raise row.error(
            "does not end with the answer the label is about", field=row.which(TURNS_NAMES), found=turns[-1].text
        )
    check_prompt(row, turns[:-1])
    return Rating(
        prompt=turns[:-1],
        response=turns[-1:],
        label=label,
        tools=read_tools(row),
        columns=row.rest(),
        origin=row.origin,
    )


def is_label(value: object) -> bool:
    """A yes or no; a column of numbers with a null in it comes as 1.0 and 0.0."""
    return (isinstance(value, int | float) and value in (0, 1)) or (
        isinstance(value, str) and value.strip().lower() in _WORDS
    )


_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _label(row: Row, name: str) -> bool:
    value = row.take(name)
    if not is_label(value):
        raise row.error("is not true or false", field=name, found=value)
    return _WORDS[value.strip().lower()] if isinstance(value, str) else bool(value)


def ranking(row: Row) -> Ranking:
    """`responses` with their `rankings`: 1 is the best, ties allowed."""
    responses, ranks = _responses(row, row.which(RANK_NAMES))
    prompt, tools = _shown(row, prompt_turns(row)), read_tools(row)
    check_prompt(row, prompt)
    return Ranking(
        prompt=prompt, responses=responses, ranks=ranks, tools=tools, columns=row.rest(), origin=row.origin
    )


def scored(row: Row) -> Scored:
    """`prompt`, `response`, `reward`; or `responses` with `rewards`."""
    if "responses" in row:
        responses, values = _responses(row, row.which(VALUES_NAMES))
    else:
        name, field = row.which(("response", "completion", "answer", "output")), row.which(VALUE_NAMES)
        responses, values = (row.text(name),), (row.number(row.take(field), field),)
    return _scored(row, responses, values, "reward")


def weighted(row: Row) -> Scored:
    """`prompt`, `responses`, `weights` that sum to one."""
    responses, values = _responses(row, "weights")
    if min(values) < 0 or abs(math.fsum(values) - 1) > SUM_TOLERANCE:
        raise row.error(
            "weights are not shares of one",
            field="weights",
            found=list(values),
            fix="make them non-negative with sum 1",
        )
    return _scored(row, responses, values, "weight")


def _scored(row: Row, responses: tuple[str, ...], values: tuple[float, ...], kind: Any) -> Scored:
    prompt, tools = _shown(row, prompt_turns(row)), read_tools(row)
    check_prompt(row, prompt)
    return Scored(
        prompt=prompt, responses=responses, values=values, kind=kind, tools=tools, columns=row.rest(),
        origin=row.origin,
    )  # fmt: skip


def _shown(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt with its system text and its pictures."""
    return place_images(row, with_system(row, turns), listed=has_turns(row))


def _responses(row: Row, name: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Responses and their numbers, equally many."""
    responses, numbers = row.listed("responses"), row.listed(name)
    if len(responses) != len(numbers):
        raise row.error(f"{len(numbers)} numbers for {len(responses)} responses", field=name)
    texts = []
    for index, response in enumerate(responses):
        text = row.as_text(response, f"responses[{index}]")
        if not text.strip():
            raise row.error("is empty", field=f"responses[{index}]")
        texts.append(text)
    return tuple(texts), tuple(row.number(number, f"{name}[{index}]") for index, number in enumerate(numbers))
