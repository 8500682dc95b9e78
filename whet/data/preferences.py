"""Formats whose rows compare two answers. Each function: row -> preference."""

from __future__ import annotations

from whet.data.conversations import (
    PROMPT_NAMES,
    TURNS_NAMES,
    answer_turns,
    has_turns,
    history,
    prompt_turns,
    transcript,
)
from whet.data.images import place_images
from whet.data.messages import is_turn, parse_messages, read_messages, with_system
from whet.data.row import Row
from whet.data.tools import read_tools
from whet.schema.records import Message, Preference

CHOSEN_NAMES = ("chosen", "response_chosen", "answer")
REJECTED_NAMES = ("rejected", "response_rejected", "rejected_response", "rejected_messages", "negative")


class NothingToLearn(Exception):
    """A sound row that holds no record of the kind asked for (all answers equally good): dropped under its reason."""


def preference(row: Row) -> Preference:
    """`prompt`, `chosen`, `rejected` under any of their names; answers as text, one message, or a list of messages."""
    rejected = answer_turns(row, row.which(REJECTED_NAMES))
    if not has_any(row, CHOSEN_NAMES):
        # ms-swift: `messages` end with the chosen answer, and `rejected_response` stands beside them.
        turns = read_messages(row, row.which(TURNS_NAMES))
        return _pair(row, turns[:-1], turns[-1:], rejected)
    chosen = answer_turns(row, row.which(CHOSEN_NAMES))
    if has_any(row, PROMPT_NAMES) or (has_any(row, TURNS_NAMES) and chosen[:1] and chosen[0].role == "assistant"):
        prompt = _beside_turns(row, prompt_turns(row))
        before, chosen = _cut(chosen)
        other, rejected = _cut(rejected)
        if before and other and _spoken(before) != _spoken(other):
            raise row.error(
                "begins with other turns than chosen", field="rejected", found=other[0].text, fix="make them the same"
            )
        prompt = _fuller(row, _fuller(row, prompt, before, "chosen"), other, "rejected")
    else:
        prompt, chosen, rejected = split_common(row, chosen, rejected)
    return _pair(row, prompt, chosen, rejected)


def has_any(row: Row, names: tuple[str, ...]) -> bool:
    return any(name in row for name in names)


def _beside_turns(row: Row, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt with what turns in a column of their own say before it; an answer at their end is not of it. Turns
    that lead up to another prompt stay a column."""
    for name in TURNS_NAMES if has_any(row, PROMPT_NAMES) else ():
        turns = row.values.get(name)
        if isinstance(turns, list) and turns and all(map(is_turn, turns)):
            before, _ = _cut(parse_messages(row, turns, name))
            fuller = _fuller(row, prompt, before, name) if _ends_with(before, prompt) else prompt
            if fuller is not prompt:
                prompt = fuller
                row.take(name)
    return prompt


def _cut(turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What is repeated of a prompt before an answer, and the answer."""
    if turns[:1] and turns[0].role == "assistant":
        return (), turns
    cut = next((index for index in range(len(turns), 0, -1) if turns[index - 1].role != "assistant"), 0)
    return turns[:cut], turns[cut:]


def _fuller(row: Row, prompt: tuple[Message, ...], repeated: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    """The prompt, or the turns that repeat it where they say more: what was said before it, a system turn.

    Raises DataError where they differ.
    """
    rules, others = (tuple(turn for turn in turns if turn.role == "system") for turns in (prompt, repeated))
    if repeated and not _ends_with(repeated, prompt):
        raise row.error(
            "begins with another prompt than the row's", field=field, found=repeated[0].text,
            fix="remove the prompt from it",
        )  # fmt: skip
    if rules and others and rules != others:
        raise row.error("a second system text: the prompt has another", field=field, found=others[0].text)
    if len(_spoken(repeated)) <= len(_spoken(prompt)) and not (others and not rules):
        return prompt
    return repeated if others else (*rules, *repeated)


def _spoken(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(turn for turn in turns if turn.role != "system")


def _ends_with(turns: tuple[Message, ...], prompt: tuple[Message, ...]) -> bool:
    """Whether turns lead up to the prompt, system turns aside."""
    bare = _spoken(prompt)
    return _spoken(turns)[-len(bare) :] == bare


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
    prompt = place_images(row, with_system(row, prompt), listed=has_turns(row))
    check_prompt(row, prompt)
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns:
            raise row.error("is empty", field=field, fix="fill it in, remove the row, or set data.on_bad_row=drop")
        if len(turns) > 1:
            raise row.error(
                f"has {len(turns)} turns after the common prompt: a pair compares one answer with another",
                field=field,
                fix="remove the row, or set data.on_bad_row=drop",
            )
        if turns[0].role != "assistant":
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
    prompt = (*history(row), Message("user", row.text("prompt")))
    return _pair(row, prompt, responses[int(better)], responses[1 - int(better)])
