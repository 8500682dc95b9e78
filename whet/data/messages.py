"""Lists of turns as files write them, whatever the dialect: OpenAI `role/content` and ShareGPT `from/value`.

    [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "5"}]
        -> (Message("user", "2+3?"), Message("assistant", "5"))

A `function_call` turn becomes an assistant turn with `tool_calls`, an `observation` a `tool` turn.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from whet.data.images import part_source, picture_source
from whet.data.row import Row, kind_of_value
from whet.data.tools import parse_calls, read_calls
from whet.errors import nearest
from whet.schema.records import Message, Part, Role

CALL = "call"
ROLE_WORDS: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_call": CALL,
    "tool_call": CALL,
}
"""The word a file uses for who speaks -> our role."""
SYSTEM_NAMES = ("system", "system_prompt")
REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")


def read_messages(row: Row, name: str) -> tuple[Message, ...]:
    """The turns under a column. Raises DataError naming the turn that cannot be read."""
    return parse_messages(row, row.listed(name), name)


def parse_messages(row: Row, turns: Sequence[Any], field: str) -> tuple[Message, ...]:
    messages = [parse_message(row, turn, f"{field}[{index}]") for index, turn in enumerate(turns)]
    # An empty system turn says nothing: the same as none. Every other empty turn is an error above.
    said = tuple(message for message in messages if message.role != "system" or message.content)
    if not said:
        raise row.error("has no turns", field=field, fix="fill it in, remove the row, or set data.on_bad_row=drop")
    return said


def is_turn(value: object) -> bool:
    return isinstance(value, Mapping) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def parse_message(row: Row, turn: Any, field: str) -> Message:
    """One turn. Raises DataError where it has no known role or nothing to say."""
    if not isinstance(turn, Mapping):
        raise row.error(f"is {kind_of_value(turn)}, not an object with role and content", field=field, found=turn)
    role = _role(row, turn, field)
    key = row.tags.content or ("content" if "content" in turn else "value")
    content = turn.get(key)
    if role == CALL:
        calls = read_calls(row, content, f"{field}.{key}")
        return Message("assistant", "", tool_calls=calls, weight=_weight(row, turn, field))
    calls = _calls(row, turn, field)
    body = _content(row, content, f"{field}.{key}")
    reasoning = _reasoning(row, turn, field)
    if reasoning:
        thought = f"<think>\n{reasoning}\n</think>\n\n"
        body = thought + body if isinstance(body, str) else (Part("text", thought), *body)
    if _is_blank(body) and not calls and role != "system":
        raise row.error(
            "is null" if content is None else "is empty",
            field=f"{field}.{key}",
            fix="fill in the turn or remove the row",
        )
    return Message(_checked(role), body, tool_calls=calls, weight=_weight(row, turn, field))


def _calls(row: Row, turn: Mapping[str, Any], field: str) -> tuple[Mapping[str, Any], ...]:
    """`tool_calls`, or the one call of OpenAI's older `function_call`."""
    calls = parse_calls(row, turn.get("tool_calls"), f"{field}.tool_calls")
    older = turn.get("function_call")
    # "none" and "auto" say what was allowed; Parquet writes no call as one of nulls.
    if not older or older in ("none", "auto") or (isinstance(older, Mapping) and not any(older.values())):
        return calls
    if calls:
        raise row.error("is given beside tool_calls", field=f"{field}.function_call", found=older, fix="remove one")
    return read_calls(row, older, f"{field}.function_call")


def _reasoning(row: Row, turn: Mapping[str, Any], field: str) -> str:
    """What the turn thought, under any of its names. Raises DataError where two say different things, or the first is
    no text; under the others some write settings."""
    found = ""
    for name in REASONING_NAMES:
        value = turn.get(name)
        is_said = isinstance(value, str) or (name == REASONING_NAMES[0] and value is not None)
        text = row.as_text(value, f"{field}.{name}") if is_said else ""
        if text and found and text != found:
            raise row.error(
                "a second reasoning: the turn has another", field=f"{field}.{name}", found=text, fix="remove one"
            )
        found = found or text
    return found


def _checked(role: str) -> Role:
    match role:
        case "system" | "user" | "assistant" | "tool":
            return role
        case _:
            raise AssertionError(role)


def _role(row: Row, turn: Mapping[str, Any], field: str) -> str:
    key = row.tags.role or ("role" if "role" in turn else "from")
    word = turn.get(key)
    if not isinstance(word, str):
        raise row.error(
            "a turn without its role" if word is None else f"is {kind_of_value(word)}, not text",
            field=f"{field}.{key}",
            found=f"fields {', '.join(map(str, turn))}",
            fix="a turn is {role, content} or {from, value}",
        )
    role = row.tags.roles.get(word) or ROLE_WORDS.get(word.strip().lower())
    if role is None:
        guess = nearest(word, ROLE_WORDS)
        raise row.error(
            "unknown role",
            field=f"{field}.{key}",
            found=word,
            fix=f"did you mean {guess!r}?" if guess else "use system, user, assistant or tool",
        )
    return role


def _content(row: Row, content: Any, field: str) -> str | tuple[Part, ...]:
    match content:
        case None:
            return ""
        case str():
            return row.as_text(content, field)
        case list():
            parts = [_part(row, piece, f"{field}[{index}]") for index, piece in enumerate(content)]
            if all(part.type == "text" for part in parts):
                return "".join(part.value for part in parts)
            return tuple(parts)
        case _:
            raise row.error(f"is {kind_of_value(content)}, not text", field=field, found=content)


def _part(row: Row, piece: Any, field: str) -> Part:
    match piece:
        case str(text) | {"type": "text", "text": str(text)}:
            return Part("text", row.as_text(text, field))
        case {"type": "image" | "image_url" | "input_image"}:
            source = part_source(row, piece, field)
            return Part("image", "" if source is None else picture_source(row, source, field))
        case _:
            raise row.error(
                "unknown content part",
                field=field,
                found=piece,
                fix="a part is {type: text, text} or {type: image, image: PATH}",
            )


def _is_blank(content: str | tuple[Part, ...]) -> bool:
    return not content.strip() if isinstance(content, str) else not content


def _weight(row: Row, turn: Mapping[str, Any], field: str) -> float:
    """`weight` (OpenAI fine-tuning files) or `loss` (true/false or a number): how much this turn counts in the loss."""
    for key in ("weight", "loss"):
        value = turn.get(key)
        if isinstance(value, bool):
            return float(value)
        if value is not None:
            weight = row.number(value, f"{field}.{key}")
            if weight < 0:
                raise row.error("a weight below zero", field=f"{field}.{key}", found=value)
            if weight and not _as_float32(weight):
                raise row.error("a weight too large or too small to count with", field=f"{field}.{key}", found=value)
            return weight
    return 1.0


def _as_float32(weight: float) -> float:
    """The weight as losses count it; 0 where it is too large for them."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", weight))
    except OverflowError:
        return 0.0
    return float(rounded)


def with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the system text of a column before the turns, where they have none of their own.

    Raises DataError where two say different things.
    """
    for name in SYSTEM_NAMES:
        text = row.maybe_text(name)
        if not text.strip():
            continue
        if not messages or messages[0].role != "system":
            messages = (Message("system", text), *messages)
        elif messages[0].text != text:
            raise row.error("a second system text: the turns begin with another", field=name, found=text)
    return messages
