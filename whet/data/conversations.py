"""Formats whose rows are turns to learn from. Each function: row -> conversation, the turns in order.

A conversation read here may still lack an answer; whether one is needed depends on what the rows are read for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from whet.data.images import place_images
from whet.data.messages import is_turn, parse_message, parse_messages, read_messages, with_system
from whet.data.row import Row, kind_of_value
from whet.data.tools import read_tools
from whet.schema.records import Conversation, Message

PROMPT_NAMES = ("prompt", "question", "query", "problem", "instruction")
ANSWER_NAMES = ("completion", "answer", "response", "output")
TURNS_NAMES = ("messages", "conversations", "conversation")

_FINAL = re.compile(r"####\s*(\S[^\n]*)")


def conversation(row: Row, messages: tuple[Message, ...]) -> Conversation:
    """What all formats share: system column, pictures, tools, and the columns nobody asked for."""
    messages = place_images(row, with_system(row, messages), listed=has_turns(row))
    tools = read_tools(row)
    return Conversation(messages=messages, tools=tools, columns=row.rest(), origin=row.origin)


def has_turns(row: Row) -> bool:
    """Whether the turns that were read are written as turns, of which a picture without a mark could belong to any.

    A prompt in which one user speaks once is a question like a plain text, as TRL's users write it.
    """
    names = (*TURNS_NAMES, *PROMPT_NAMES, "chosen")  # the answers hold the prompt where it has no column of its own
    name = next((name for name in names if row.was_read(name)), None)
    if name in TURNS_NAMES:
        return True
    read = None if name is None else _structured(row, name)
    if name in PROMPT_NAMES and isinstance(read, list):
        spoken = [turn for turn in read if isinstance(turn, dict) and turn.get("role") == "user"]
        return len(spoken) != 1
    return isinstance(read, list | dict)


def alpaca(row: Row) -> Conversation:
    """`instruction`, `input`, `output`, and `history` of [question, answer] pairs before it."""
    return conversation(
        row, (*history(row), Message("user", instruction(row)), Message("assistant", row.text("output")))
    )


def instruction(row: Row) -> str:
    """The instruction with its input on the next line."""
    text, extra = row.text("instruction"), row.maybe_text("input")
    return f"{text}\n{extra}" if extra.strip() else text


def history(row: Row) -> tuple[Message, ...]:
    turns: list[Message] = []
    written = row.values.get("history")
    if isinstance(written, str) and not written.lstrip().startswith("["):
        return ()  # a column of somebody's own
    pairs = row.opened(row.maybe("history"), "history") or ()
    if not isinstance(pairs, list | tuple):
        raise row.error(f"is {kind_of_value(pairs)}, not a list of pairs", field="history", found=pairs)
    for index, pair in enumerate(pairs):
        field = f"history[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise row.error(f"is {kind_of_value(pair)}, not a [question, answer] pair", field=field, found=pair)
        question, answer = (row.as_text(text, field) for text in pair)
        if not question.strip() or not answer.strip():
            raise row.error("has an empty turn", field=field, found=pair)
        turns += [Message("user", question), Message("assistant", answer)]
    return tuple(turns)


def turns(row: Row) -> Conversation:
    """`messages` or `conversations`, in either dialect."""
    return conversation(row, read_messages(row, row.which(TURNS_NAMES)))


def prompt_completion(row: Row) -> Conversation:
    """A prompt and its answer, each a text, a message, or a list of messages."""
    return conversation(row, (*prompt_turns(row), *answer_turns(row, row.which(ANSWER_NAMES))))


def prompt_turns(row: Row) -> tuple[Message, ...]:
    """The turns of a row's prompt, under whatever name it stands."""
    name = row.which(PROMPT_NAMES)
    if name not in row and row.which(TURNS_NAMES) in row:
        return read_messages(row, row.which(TURNS_NAMES))
    if name == "instruction":
        return (*history(row), Message("user", instruction(row)))
    turns = _written_turns(row, name)
    if turns is None:
        text = row.text(name)
        turns = transcript(row, text, name) if text.startswith(HUMAN) else (Message("user", text),)
    rules = turns[:1] if turns[0].role == "system" else ()
    return (*rules, *history(row), *turns[len(rules) :])


def answer_turns(row: Row, name: str) -> tuple[Message, ...]:
    """The turns of an answer: a text, one message, or a list of them."""
    turns = _written_turns(row, name)
    return (Message("assistant", row.text(name)),) if turns is None else turns


def _written_turns(row: Row, name: str) -> tuple[Message, ...] | None:
    """The turns of a column that holds one or a list of them; None where it holds a text."""
    row.take(name)
    value = _structured(row, name)
    match value:
        case list():
            return parse_messages(row, value or row.listed(name), name)
        case dict():
            return (parse_message(row, value, name),)
        case _:
            return None


def _structured(row: Row, name: str) -> Any:
    """The value. A list of turns that was written as JSON is opened, in a cell of CSV a single turn too; any other text
    is what somebody said."""
    value = row.values[name]
    if not isinstance(value, str) or value.lstrip()[:1] not in (("[", "{") if _is_csv(row) else ("[",)):
        return value
    try:
        opened = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns = opened if isinstance(opened, list) else [opened]
    return opened if turns and all(map(is_turn, turns)) else value


def _is_csv(row: Row) -> bool:
    """Whether cells are all text, so that turns can only be written as JSON."""
    return row.origin.file.lower().endswith(".csv")


def self_instruct(row: Row) -> Iterator[Conversation]:
    """A task with its `instances`: one conversation each."""
    task, earlier = instruction(row), history(row)
    for index, instance in enumerate(row.listed("instances")):
        field = f"instances[{index}]"
        if not isinstance(instance, dict):
            raise row.error(f"is {kind_of_value(instance)}, not an object", field=field, found=instance)
        inner = Row({f"{field}.{key}": value for key, value in instance.items()}, row.origin)
        extra = inner.maybe_text(f"{field}.input")
        user = Message("user", f"{task}\n{extra}" if extra.strip() else task)
        yield conversation(row, (*earlier, user, Message("assistant", inner.text(f"{field}.output"))))


def openorca(row: Row) -> Conversation:
    """`system_prompt` (may be empty), `question`, `response`."""
    turns = (Message("user", row.text("question")), Message("assistant", row.text("response")))
    return conversation(row, (*history(row), *turns))


def gsm8k(row: Row) -> Conversation:
    """A worked answer that ends in `#### 72`: learnt as it stands, calculator notes `<<48/2=24>>` included.

    The final number is kept in the column `final`, unless the row has one of its own, and becomes the reference where
    the rows are read as prompts.
    """
    answer = row.text("answer")
    final = final_answer(answer)
    if final is None:
        raise row.error(
            "has no '#### ANSWER' line",
            field="answer",
            found=answer[-40:],
            fix="set data.format=prompt_completion if the answers have none",
        )
    turns = (*history(row), Message("user", row.text("question")), Message("assistant", answer))
    record = conversation(row, turns)
    return record if "final" in row else replace(record, columns={**record.columns, "final": final})


def final_answer(answer: str) -> str | None:
    """The number after `####`, without thousands separators; None where there is no such line."""
    found = _FINAL.findall(answer)
    return found[-1].strip().replace(",", "") if found else None


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def transcript(row: Row, text: str, field: str) -> tuple[Message, ...]:
    """Turns of an hh-rlhf transcript. Raises DataError where it does not begin with a speaker or a turn is empty."""
    pieces = _SPEAKER.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise row.error("is no transcript", field=field, found=text, fix=r"write '\n\nHuman: ...\n\nAssistant: ...'")
    messages = []
    for index in range(1, len(pieces), 2):
        role, words = pieces[index], pieces[index + 1].strip()
        if words:
            messages.append(Message("user" if role == "Human" else "assistant", words))
        elif index + 2 < len(pieces) or role == "Human":
            raise row.error(f"has an empty {role} turn", field=field, found=text[-FOUND_TAIL:])
    return tuple(messages)


FOUND_TAIL = 40
"""How much of a transcript's end an error quotes."""
