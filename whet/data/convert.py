"""Any readable file -> JSONL in a plain, common format. Nothing is overwritten, and columns nobody claimed go along."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from whet.config.data import Data
from whet.data.beside import Beside
from whet.data.formats import OWN_ANSWER
from whet.data.images import IMAGE
from whet.data.ledger import Ledger
from whet.data.places import pictures_in
from whet.data.reach import free_for_rows
from whet.data.row import finite, quote
from whet.data.sources import places_of, stream_records
from whet.errors import ConfigError, DataError, nearest
from whet.schema.records import Conversation, Message, Origin, Preference, Prompt, Rating, Record, RecordKind

TARGETS: dict[str, RecordKind] = {
    "messages": "conversation",
    "sharegpt": "conversation",
    "alpaca": "conversation",
    "preference": "preference",
    "kto": "rating",
    "prompt": "prompt",
}
"""Format to write -> kind of record it holds."""
SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def convert(path: str, data: Data, to: str, out: str) -> Ledger:
    """Read `path`, write `out`; returns the account of its rows. The file appears whole or not at all.

    Pictures that came inside rows are written into a folder beside it.

    Raises DataError where `out` exists or has the name of another format, or a record cannot be written in that format;
    ConfigError for an unknown one.
    """
    if to not in TARGETS:
        raise ConfigError(
            "cannot be written", field="to", found=repr(to), fix=f"use {nearest(to, TARGETS) or ', '.join(TARGETS)}"
        )
    target = Path(out)
    free_for_rows(target)
    ledger, writer, beside = Ledger(), writer_of(to), Beside(target)
    records = stream_records(data, (TARGETS[to],), ledger, places=places_of(data, {}, (path,)))
    rows = (_row(writer(beside.record(record)), record) for record in records)
    _write(target, (_line(row) + "\n" for row in rows), beside)
    return ledger


def _line(row: Mapping[str, Any]) -> str:
    """A row in JSON: null for numbers that are none, base64 for bytes, as text what else JSON has no form for."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(finite(row), ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _write(target: Path, lines: Iterable[str], beside: Beside) -> None:
    """The lines as they come, then the pictures; nothing is left where something goes wrong."""
    temporary = target.with_name(f".whet-{os.getpid()}.tmp")
    folder_is_new = False
    try:
        folder_is_new = not target.parent.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as handle:
            handle.writelines(lines)
        beside.copy()
        temporary.rename(target)
    except OSError as error:
        raise DataError(
            "cannot write", file=str(target), found=error.strerror or str(error), fix="choose another place"
        ) from error
    finally:
        with suppress(OSError):  # renamed by now, or never written
            temporary.unlink()
            if folder_is_new:
                target.parent.rmdir()


def _row(fields: Mapping[str, Any], record: Record) -> dict[str, Any]:
    """The fields of the format, and the columns that nobody claimed. Raises DataError where both have one name."""
    for name, value in record.columns.items():
        if name in fields and fields[name] not in (value, str(value)):
            raise DataError(
                "is a column of the row, and what is written has another of this name",
                file=record.origin.file,
                line=record.origin.line,
                field=name,
                found=quote(value),
                fix="rename or remove the column",
            )
    return {**fields, **{name: value for name, value in record.columns.items() if name not in fields}}


def writer_of(to: str) -> Callable[[Any], dict[str, Any]]:
    match to:
        case "messages":
            return _messages_row
        case "sharegpt":
            return _sharegpt_row
        case "alpaca":
            return _alpaca_row
        case "preference":
            return _preference_row
        case "kto":
            return _kto_row
        case "prompt":
            return _prompt_row
        case _:
            raise ValueError(to)


def _messages_row(record: Conversation) -> dict[str, Any]:
    marks = _marks(record.messages)
    row: dict[str, Any] = {"messages": [_message(message, marks) for message in record.messages]}
    return {**row, **_tools(record.tools), **_images(record.messages, marks)}


def _marks(messages: Sequence[Message]) -> bool:
    """Whether `<image>` can stand for pictures in the text of a row: nobody wrote it. Else they are parts of turns."""
    return not any(IMAGE in message.text for message in messages)


def _message(message: Message, marks: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": _text(message) if marks else _parts(message)}
    if message.tool_calls:
        turn["tool_calls"] = [{"type": "function", "function": dict(call)} for call in message.tool_calls]
    if message.weight != 1:
        turn["weight"] = message.weight
    return turn


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.value if part.type == "text" else IMAGE for part in message.content)


def _parts(message: Message) -> str | list[dict[str, str]]:
    if isinstance(message.content, str):
        return message.content
    return [
        {"type": "text", "text": part.value} if part.type == "text" else {"type": "image", "image": part.value}
        for part in message.content
    ]


def _images(messages: Sequence[Message], marks: bool) -> dict[str, Any]:
    paths = pictures_in(messages) if marks else []
    return {"images": paths} if paths else {}


def _tools(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"tools": json.dumps(list(tools), ensure_ascii=False)} if tools else {}


def _sharegpt_row(record: Conversation) -> dict[str, Any]:
    marks = _marks(record.messages)
    if not marks and pictures_in(record.messages):
        raise _unwritable("sharegpt", f"{IMAGE} among the words of a row with pictures", record.origin)
    turns = [turn for message in record.messages for turn in _sharegpt_turns(message)]
    return {"conversations": turns, **_tools(record.tools), **_images(record.messages, marks)}


def _sharegpt_turns(message: Message) -> list[dict[str, Any]]:
    """Words and calls of one turn are two turns in this format, each with its weight."""
    turns: list[dict[str, Any]] = []
    if _text(message):
        turns.append({"from": SHAREGPT_ROLES[message.role], "value": _text(message)})
    if message.tool_calls:
        calls = [dict(call) for call in message.tool_calls]
        turns.append(
            {"from": "function_call", "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)}
        )
    return [{**turn, "weight": message.weight} for turn in turns] if message.weight != 1 else turns


def _alpaca_row(record: Conversation) -> dict[str, Any]:
    messages = list(record.messages)
    system = messages.pop(0).text if messages and messages[0].role == "system" else None
    roles = [message.role for message in messages]
    other = record.tools or pictures_in(messages)
    if not messages or roles != ["user", "assistant"] * (len(messages) // 2) or other:
        raise _unwritable("alpaca", f"turns {'/'.join(roles)}", record.origin)
    if weights := [answer.weight for answer in messages[1::2] if answer.weight != 1]:
        raise _unwritable("alpaca", f"an answer of weight {weights[0]:g}", record.origin)
    if any(message.tool_calls for message in messages):
        raise _unwritable("alpaca", "an answer that calls a tool", record.origin)
    texts = [message.text for message in messages]
    history = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    row: dict[str, Any] = {"instruction": texts[-2], "input": "", "output": texts[-1]}
    return {**row, **({"history": history} if history else {}), **({"system": system} if system else {})}


def _unwritable(format: str, found: str, origin: Origin) -> DataError:
    return DataError(
        f"cannot be written as {format}",
        file=origin.file,
        line=origin.line,
        found=found,
        fix="write messages or sharegpt instead",
    )


def _preference_row(record: Preference) -> dict[str, Any]:
    marks = _marks(record.prompt)
    row: dict[str, Any] = {
        "prompt": _prompt(record.prompt, marks),
        "chosen": _answer(record.chosen),
        "rejected": _answer(record.rejected),
    }
    numbers = {"chosen_score": record.chosen_score, "rejected_score": record.rejected_score, "margin": record.margin}
    row |= {name: value for name, value in numbers.items() if value is not None}
    return {**row, **_tools(record.tools), **_images(record.prompt, marks)}


def _kto_row(record: Rating) -> dict[str, Any]:
    marks = _marks((*record.prompt, *record.response))
    row = {"prompt": _prompt(record.prompt, marks), "completion": _answer(record.response), "label": record.label}
    return {**row, **_tools(record.tools), **_images(record.prompt, marks)}


def _prompt(messages: Sequence[Message], marks: bool) -> str | list[dict[str, Any]]:
    plain = len(messages) == 1 and messages[0].role == "user"
    if plain and (marks or isinstance(messages[0].content, str)):
        return _text(messages[0])
    return [_message(message, marks) for message in messages]


def _answer(turns: Sequence[Message]) -> str | list[dict[str, Any]]:
    """The turns of an answer. A row's `images` are those of its prompt: a picture here is named where it stands."""
    plain = len(turns) == 1 and isinstance(turns[0].content, str) and not turns[0].tool_calls
    return turns[0].text if plain else [_message(message, marks=False) for message in turns]


def _prompt_row(record: Prompt) -> dict[str, Any]:
    marks = _marks(record.messages)
    row: dict[str, Any] = {"prompt": _prompt(record.messages, marks)}
    if record.reference is not None:
        row["reference"] = record.reference
    if record.answer is not None:
        row[OWN_ANSWER] = record.answer
    return {**row, **_tools(record.tools), **_images(record.messages, marks)}
