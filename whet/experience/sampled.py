"""Prompts with their scored answers on disk: `groups.jsonl`, a line a prompt, in the order of the prompts.

    {"key": "3f1c...", "origin": "prompts.jsonl:12", "messages": [...], "reference": "42", "columns": {...},
     "answers": [{"text": "42", "num_tokens": 3, "finish_reason": "stop", "score": 1.0}, ...]}

A line is whole or not there: what a kill cut short is removed when the file is opened to be written on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from whet.runs.files import reading, writing
from whet.schema.records import Message, Origin, Part, Prompt
from whet.schema.rollouts import Completion, FinishReason, Score

Row = dict[str, Any]
BLOCK = 1 << 20
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completion and its score, without what only training wants of them."""

    text: str
    num_tokens: int
    finish_reason: FinishReason
    score: float | None
    """None where there is none, and then `error` says why."""
    parts: Mapping[str, float] = field(default_factory=dict)
    votes: tuple[str, ...] = ()
    """A judge's words."""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A prompt with all its answers."""

    key: str
    """The name of the prompt, made of its content."""
    prompt: Prompt
    answers: tuple[Answer, ...]


def answer_of(completion: Completion, score: Score) -> Answer:
    return Answer(
        text=completion.text, num_tokens=completion.num_tokens, finish_reason=completion.finish_reason,
        score=score.value, parts=score.parts, votes=score.votes, error=score.error or completion.error,
    )  # fmt: skip


class GroupFile:
    """Groups added one after another. `num` of them are in the file, those of earlier processes included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self.num, end = whole_lines(path)
            os.truncate(path, end)
            self._handle = path.open("a", encoding="utf-8")

    def add(self, groups: Iterable[Sampled]) -> None:
        """Write the groups and wait until they are on the disk."""
        lines = [line_of(row_of(group)) for group in groups]
        with writing(self.path):
            self._handle.write("".join(lines))
            self._handle.flush()
            os.fsync(self._handle.fileno())
        self.num += len(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()


def read_groups(path: Path) -> Iterator[Sampled]:
    """The groups of a file, one at a time."""
    with reading(path), path.open("rb") as handle:
        for line in handle:
            yield sampled_of(json.loads(line))


def whole_lines(path: Path) -> tuple[int, int]:
    """Number of lines that have an end, and the byte behind the last of them. No more than a block is in memory."""
    num = position = end = 0
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            if found := block.count(b"\n"):
                num, end = num + found, position + block.rfind(b"\n") + 1
            position += len(block)
    return num, end


def line_of(row: Mapping[str, Any]) -> str:
    """A JSON line. What JSON has no word for (a date in a Parquet file) becomes text."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def row_of(group: Sampled) -> Row:
    prompt = group.prompt
    row: Row = {"key": group.key, "origin": str(prompt.origin)}
    row["messages"] = [_message(message) for message in prompt.messages]
    row |= {"tools": [dict(tool) for tool in prompt.tools]} if prompt.tools else {}
    row |= {"reference": prompt.reference, "columns": dict(prompt.columns)}
    row |= {} if prompt.answer is None else {"answer": prompt.answer}
    row["answers"] = [_answer(answer) for answer in group.answers]
    return row


def sampled_of(row: Mapping[str, Any]) -> Sampled:
    file, _, line = row["origin"].rpartition(":")
    prompt = Prompt(
        messages=tuple(_turn(message) for message in row["messages"]), reference=row["reference"],
        answer=row.get("answer"), tools=tuple(row.get("tools", ())), columns=row["columns"],
        origin=Origin(file=file, line=int(line)),
    )  # fmt: skip
    return Sampled(key=row["key"], prompt=prompt, answers=tuple(_answered(answer) for answer in row["answers"]))


def _answer(answer: Answer) -> Row:
    row: Row = {
        "text": answer.text, "num_tokens": answer.num_tokens, "finish_reason": answer.finish_reason,
        "score": answer.score,
    }  # fmt: skip
    more = {"parts": dict(answer.parts), "votes": list(answer.votes), "error": answer.error}
    return row | {name: value for name, value in more.items() if value}


def _answered(row: Mapping[str, Any]) -> Answer:
    return Answer(**{**row, "votes": tuple(row.get("votes", ()))})


def _message(message: Message) -> Row:
    content: object = message.content
    if not isinstance(message.content, str):
        content = [{"type": part.type, part.type: part.value} for part in message.content]
    row: Row = {"role": message.role, "content": content}
    return row | ({"tool_calls": [dict(call) for call in message.tool_calls]} if message.tool_calls else {})


def _turn(row: Mapping[str, Any]) -> Message:
    content = row["content"]
    if not isinstance(content, str):
        content = tuple(Part(type=part["type"], value=part[part["type"]]) for part in content)
    return Message(role=row["role"], content=content, tool_calls=tuple(row.get("tool_calls", ())))
