"""Sorted groups -> the files that reject leaves, each ready to be read by the stages that follow.

    accepted.jsonl     messages                          conversations to learn from
    rejected.jsonl     prompt, completion, label: false  ratings
    preference.jsonl   prompt, chosen, rejected          right against wrong of the same prompt
    solved.jsonl       prompt, reference, columns        prompts with at least one right answer
    unsolved.jsonl     the same                          prompts with answers, none of them right

Every row has the `key` of its prompt, the `origin` it was read from, and the `sample` it is. Prompts of whose answers
none has a score are in neither of the last two: nothing is known of them. Prompts that go together (`accept.together`)
are unsolved when one of them is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from whet.config.reject import Accept
from whet.data.convert import writer_of
from whet.errors import DataError
from whet.experience.accept import Fates, pair_up
from whet.experience.sampled import Sampled, line_of
from whet.runs.files import replacing
from whet.schema.records import Conversation, Message, Preference, Rating

FILES = ("accepted.jsonl", "rejected.jsonl", "preference.jsonl", "solved.jsonl", "unsolved.jsonl")

Row = dict[str, Any]


def accepted_rows(group: Sampled, fates: Fates) -> Iterator[Row]:
    write = writer_of("messages")
    for place in fates.kept:
        prompt = group.prompt
        record = Conversation(messages=(*prompt.messages, _said(group, place)), tools=prompt.tools)
        yield write(record) | _identity(group, place)


def rejected_rows(group: Sampled, fates: Fates) -> Iterator[Row]:
    write = writer_of("kto")
    for place in fates.wrong:
        prompt = group.prompt
        record = Rating(prompt=prompt.messages, response=(_said(group, place),), label=False, tools=prompt.tools)
        yield write(record) | _identity(group, place)


def preference_rows(group: Sampled, fates: Fates, num: int) -> Iterator[Row]:
    write = writer_of("preference")
    for right, wrong in pair_up(group, fates, num):
        prompt = group.prompt
        record = Preference(
            prompt=prompt.messages, chosen=(_said(group, right),), rejected=(_said(group, wrong),),
            chosen_score=group.answers[right].score, rejected_score=group.answers[wrong].score, tools=prompt.tools,
        )  # fmt: skip
        yield write(record) | _whose(group) | {"chosen_sample": right, "rejected_sample": wrong}


def prompt_row(group: Sampled, fates: Fates) -> Row:
    """The prompt with its columns, for checkers and for another try."""
    prompt = group.prompt
    row = writer_of("prompt")(replace(prompt, columns={}))
    columns = {name: value for name, value in prompt.columns.items() if name not in row}
    return {**row, **columns, **_whose(group), "num_right": fates.right, "num_scored": fates.scored}


class RejectFiles:
    """The files, written group by group; `close` gives them their names."""

    def __init__(self, handles: dict[str, IO[str]], accept: Accept, waiting: IO[str]) -> None:
        """`waiting` keeps rows of which it is not yet known where they belong."""
        self._handles, self._accept, self._waiting = handles, accept, waiting
        self._failed = set[str]()
        """Values that unsolved prompts share with others."""
        self.rows = dict.fromkeys(FILES, 0)
        """Rows written so far, by file."""

    def add(self, group: Sampled, fates: Fates) -> None:
        for row in accepted_rows(group, fates):
            self._write("accepted.jsonl", row)
        for row in rejected_rows(group, fates):
            self._write("rejected.jsonl", row)
        for row in preference_rows(group, fates, self._accept.pairs_per_prompt):
            self._write("preference.jsonl", row)
        if fates.scored:
            row, together = prompt_row(group, fates), self._accept.together
            if together is not None and together not in row:
                origin = group.prompt.origin
                raise DataError(
                    "has no such column", file=origin.file, line=origin.line, field="accept.together", found=together,
                    fix="leave it out, or give every prompt the column",
                )  # fmt: skip
            if (shared := self._shared(row)) is None:
                self._write("solved.jsonl" if fates.right else "unsolved.jsonl", row)
            elif fates.right:
                self._waiting.write(line_of(row))
            else:
                self._failed.add(shared)
                self._write("unsolved.jsonl", row)

    def settle(self) -> None:
        """Say of the solved prompts whether those that go with them are."""
        self._waiting.seek(0)
        for line in self._waiting:
            row = json.loads(line)
            self._write("unsolved.jsonl" if self._shared(row) in self._failed else "solved.jsonl", row)

    def _shared(self, row: Row) -> str | None:
        """What the prompt shares with those that go together with it."""
        together = self._accept.together
        return None if together is None else json.dumps(row[together], sort_keys=True, default=str)

    def _write(self, name: str, row: Row) -> None:
        self._handles[name].write(line_of(row))
        self.rows[name] += 1


@contextmanager
def reject_files(folder: Path, accept: Accept) -> Iterator[RejectFiles]:
    """Files that appear, all of them, when the block ends well; empty ones do too."""
    for name in FILES:
        for left in folder.glob(f".{name}.tmp*"):  # by a process that was killed
            left.unlink()
    with ExitStack() as stack:
        handles = {name: stack.enter_context(replacing(folder / name)) for name in FILES}
        files = RejectFiles(handles, accept, stack.enter_context(TemporaryFile("w+", encoding="utf-8")))
        yield files
        files.settle()


def _said(group: Sampled, place: int) -> Message:
    return Message("assistant", group.answers[place].text)


def _whose(group: Sampled) -> Row:
    return {"key": group.key, "origin": str(group.prompt.origin)}


def _identity(group: Sampled, place: int) -> Row:
    return _whose(group) | {"sample": place, "answer_score": group.answers[place].score}
