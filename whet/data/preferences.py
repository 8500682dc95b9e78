"""Formats whose rows compare or grade answers. Each function: row -> preference, rating, ranking, or scored."""

from __future__ import annotations

import math
from typing import Any

from whet.data.conversations import ANSWER_NAMES, TURNS_NAMES, answer_turns, history, prompt_turns, transcript
from whet.data.images import place_images
from whet.data.messages import read_messages, with_system
from whet.data.row import Row, kind_of_value
from whet.data.tools import read_tools
from whet.schema.records import Message, Preference, Ranking, Rating, Scored

CHOSEN_NAMES = ("chosen", "response_chosen", "answer")
REJECTED_NAMES = ("rejected", "response_rejected", "rejected_response", "rejected_messages", "negative")
LABEL_NAMES = ("label", "kto_tag")
RANK_NAMES = ("rankings", "ranks", "ranking")
VALUE_NAMES = ("reward", "score")
VALUES_NAMES = ("rewards", "scores")
SUM_TOLERANCE = 1e-3
"""How far from 1 a row's weights may sum; written with few digits they miss it by a little."""


class NothingToLearn(Exception):
    """A sound row that holds no record of the kind asked for (all answers equally good): dropped under its reason."""


def preference(row: Row) -> Preference:
    """`prompt`, `chosen`, `rejected` under any of their names; answers as text, one message, or a list of messages."""
    rejected = answer_turns(row, row.which(REJECTED_NAMES))
    chosen = answer_turns(row, row.which(CHOSEN_NAMES)) if _has(row, CHOSEN_NAMES) else ()
    prompt = _prompt_or_none(row)
    if not chosen and prompt:  # ms-swift: `messages` end with the chosen answer, `rejected_response` stands beside
        prompt, chosen = prompt[:-1], prompt[-1:]
    if prompt is None:
        prompt, chosen, rejected = split_common(row, chosen, rejected)
    else:
        chosen, rejected = (
            _without_prompt(row, prompt, turns, field) for turns, field in ((chosen, "chosen"), (rejected, "rejected"))
        )
    return _pair(row, prompt, chosen, rejected)


def _has(row: Row, names: tuple[str, ...]) -> bool:
    return any(name in row for name in names)


def _prompt_or_none(row: Row) -> tuple[Message, ...] | None:
    """The prompt the row gives, or None where it stands inside chosen and rejected."""
    names = ("prompt", "question", "query", "problem", "instruction")
    present = [name for name in names if name in row]
    # UltraFeedback's binarized rows repeat prompt and chosen in `messages`; a prompt of its own is the plainer source.
    if not present and not _has(row, TURNS_NAMES):
        return None
    return prompt_turns(row)


def _without_prompt(
    row: Row, prompt: tuple[Message, ...], turns: tuple[Message, ...], field: str
) -> tuple[Message, ...]:
    """An answer given as a whole conversation, without the prompt it repeats. Raises DataError where that differs."""
    if turns and turns[0].role == "assistant":
        return turns
    cut = next((index for index in range(len(turns), 0, -1) if turns[index - 1].role != "assistant"), 0)
    bare = tuple(message for message in prompt if message.role != "system")
    repeated = tuple(message for message in turns[:cut] if message.role != "system")
    if repeated[-len(bare) :] != bare:
        raise row.error(
            "begins with another prompt than the row's",
            field=field,
            found=turns[0].text,
            fix="remove the prompt from it",
        )
    return turns[cut:]


def split_common(
    row: Row, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Prompt = the turns both have in common, up to the last one that is not the assistant's."""
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common == len(chosen) == len(rejected):
        common -= 1
    while common and chosen[common - 1].role == "assistant":
        common -= 1
    if not common:
        raise row.error(
            "is missing",
            field="prompt",
            fix="give each row a prompt, or chosen and rejected that begin with the same turns",
        )
    return chosen[:common], chosen[common:], rejected[common:]


def _pair(
    row: Row, prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> Preference:
    prompt = place_images(row, with_system(row, prompt, "system", "system_prompt"))
    check_prompt(row, prompt)
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns:
            raise row.error("is empty", field=field, fix="fill it in, remove the row, or set data.on_bad_row=drop")
        if turns[0].role != "assistant" or turns[-1].role != "assistant":
            raise row.error("is not the assistant's turn", field=field, found=turns[0].text)
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=read_tools(row),
        chosen_score=row.maybe_number("chosen_score", "score_chosen"),
        rejected_score=row.maybe_number("rejected_score", "score_rejected"),
        margin=row.maybe_number("margin"),
        columns=row.rest(),
        origin=row.origin,
    )


def check_prompt(row: Row, prompt: tuple[Message, ...]) -> None:
    """A prompt ends where the assistant is to speak."""
    if not any(message.role in ("user", "tool") for message in prompt):
        raise row.error("has no user turn", field="prompt")
    if prompt[-1].role == "assistant":
        raise row.error(
            "ends with an assistant turn",
            field="prompt",
            found=prompt[-1].text,
            fix="let it end where the answers begin",
        )


def hh(row: Row) -> Preference:
    """hh-rlhf: two transcripts with the same beginning."""
    chosen, rejected = (transcript(row, row.text(name), name) for name in ("chosen", "rejected"))
    return _pair(row, *split_common(row, chosen, rejected))


def pku(row: Row) -> Preference:
    """PKU-SafeRLHF: two responses and which of them is better (else safer)."""
    which = next((name for name in ("better_response_id", "safer_response_id") if name in row), "better_response_id")
    better = row.number(row.take(which), which)
    if better not in (0, 1):
        raise row.error("is neither 0 nor 1", field=which, found=row.values[which])
    responses = [(Message("assistant", row.text(f"response_{index}")),) for index in (0, 1)]
    return _pair(row, (Message("user", row.text("prompt")),), responses[int(better)], responses[1 - int(better)])


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
        prompt=with_system(row, (Message("user", row.text("instruction")),)),
        responses=tuple(responses),
        values=tuple(values),
        kind="reward",
        columns=row.rest(),
        origin=row.origin,
    )


def kto(row: Row) -> Rating:
    """A conversation (or prompt and completion) and a `label`: its last answer is good or bad."""
    label = _label(row, row.which(LABEL_NAMES))
    turns = (
        (*prompt_turns(row), *answer_turns(row, row.which(ANSWER_NAMES)))
        if not _has(row, TURNS_NAMES)
        else read_messages(row, row.which(TURNS_NAMES))
    )
    turns = place_images(row, with_system(row, turns, "system", "system_prompt"))
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


def _label(row: Row, name: str) -> bool:
    match row.take(name):
        case bool(label):
            return label
        case 0 | 1 as label:
            return bool(label)
        case str(word) if word.strip().lower() in ("true", "false", "1", "0"):
            return word.strip().lower() in ("true", "1")
        case value:
            raise row.error("is not true or false", field=name, found=value)


def ranking(row: Row) -> Ranking:
    """`responses` with their `rankings`: 1 is the best, ties allowed."""
    responses, ranks = _responses(row, row.which(RANK_NAMES))
    prompt = with_system(row, (*history(row), *prompt_turns(row)))
    check_prompt(row, prompt)
    return Ranking(prompt=prompt, responses=responses, ranks=ranks, columns=row.rest(), origin=row.origin)


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
    prompt = with_system(row, prompt_turns(row))
    check_prompt(row, prompt)
    return Scored(prompt=prompt, responses=responses, values=values, kind=kind, columns=row.rest(), origin=row.origin)


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
