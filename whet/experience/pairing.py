"""Right answers of one model against wrong ones of another, joined by prompt: preferences from two models or two runs.

    chosen = Data(files=("runs/b/stages/01-reject/accepted.jsonl",))
    rejected = Data(files=("runs/a/stages/01-reject/rejected.jsonl",))
    pair(chosen, rejected, Path("pairs.jsonl"))

Rows belong together by their column `key`, which `reject` gives every prompt, else by all turns before the answer. So
the order of the files does not matter, and the same question with other pictures is another question. Only prompts with
both a right and a wrong answer make pairs: the inner join of the two sides. Where both sides name the files of both
models, it is that of their unions. A rating whose own label says the opposite of its side is left out, so that one file
of ratings may stand on both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from whet.config.data import Data
from whet.data.convert import writer_of
from whet.data.ledger import Ledger
from whet.data.reach import free_for_rows
from whet.data.sources import stream_records
from whet.data.split import prompt_key
from whet.errors import DataError
from whet.experience.sampled import line_of
from whet.runs.files import replacing
from whet.schema.records import Conversation, Message, Preference, Prompt, Rating

OTHER_LABEL = "its label says the opposite"
ENOUGH = "its prompt has all the pairs it may have"
"""Why a right answer is in no pair though a wrong one may be left; see `pairs_per_prompt`."""


@dataclass(slots=True)
class Paired:
    """What became of the answers: every one is in a pair, or in one of the counts."""

    pairs: int = 0
    prompts: int = 0
    chosen_alone: int = 0
    """Right answers in no pair: no wrong one was left for them, or their prompt had its pairs."""
    rejected_alone: int = 0
    """Wrong answers that no right one took."""
    same_text: int = 0
    """Wrong answers that say what a right one says, in words and calls."""
    other_label: int = 0
    """Ratings whose label says that they belong on the other side."""
    chosen: Ledger = field(default_factory=Ledger)
    """Rows of the right answers, with the lines of those in no pair."""
    rejected: Ledger = field(default_factory=Ledger)
    """Rows of the wrong answers."""

    def describe(self) -> str:
        text = f"{self.pairs:,} pairs of {self.prompts:,} prompts; left over: {self.chosen_alone:,} right and "
        text += f"{self.rejected_alone:,} wrong answers"
        text += f"; {self.same_text:,} wrong ones say what a right one says" if self.same_text else ""
        return text + (f"; {self.other_label:,} are labelled the opposite" if self.other_label else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"chosen": self.chosen.to_json(), "rejected": self.rejected.to_json()}


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and the prompt it is to."""

    key: str
    prompt: tuple[Message, ...]
    answer: Message
    record: Conversation | Rating

    @property
    def said(self) -> tuple[str, str]:
        """Two answers are the same where this is."""
        return self.answer.text.strip(), json.dumps(self.answer.tool_calls, sort_keys=True, default=str)


def pair(
    chosen: Data, rejected: Data, out: Path, *, num: int = 1, folders: Mapping[str, Path] = {}
) -> Paired:
    """Write at most `num` pairs a prompt, each answer in one of them, with answers of like length together.

    `folders` are those of stages by name. The wrong answers are held in memory, and the right ones read twice: what one
    of them says is not wrong for another. Raises DataError where `out` exists, or where nothing can be paired.
    """
    free_for_rows(out)
    waiting: dict[str, list[Answered]] = {}
    found, given = Paired(), dict[str, int]()
    for one in _answers(rejected, False, folders, found.rejected):
        waiting.setdefault(one.key, []).append(one)
    said = {(one.key, one.said) for one in _answers(chosen, True, folders, Ledger()) if one.key in waiting}
    for one in [one for one in chain.from_iterable(waiting.values()) if (one.key, one.said) in said]:
        waiting[one.key].remove(one)
        found.rejected.drop("says what a right answer says", one.record.origin)
        found.same_text += 1
    with replacing(out) as file:
        for right in _answers(chosen, True, folders, found.chosen):
            full = given.get(right.key, 0) >= num
            wrong = None if full else _nearest(right, waiting.get(right.key, []))
            if wrong is None:
                found.chosen_alone += 1
                found.chosen.drop(ENOUGH if full else "no wrong answer for it", right.record.origin)
                continue
            given[right.key] = given.get(right.key, 0) + 1
            file.write(line_of(_row(right, wrong)))
        found.pairs, found.prompts = sum(given.values()), len(given)
        for left in chain.from_iterable(waiting.values()):
            found.rejected_alone += 1
            found.rejected.drop("no right answer took it", left.record.origin)
        found.other_label = sum(len(of.dropped.get(OTHER_LABEL, ())) for of in (found.chosen, found.rejected))
        if not found.pairs:
            raise DataError(
                f"no prompt has a right answer here and a wrong one in {_named(rejected)}", file=_named(chosen),
                found=found.describe(), fix="give files of the same prompts",
            )  # fmt: skip
    return found


def _nearest(right: Answered, wrong: list[Answered]) -> Answered | None:
    """Take the wrong answer whose length is nearest."""
    if not wrong:
        return None
    length = len(right.answer.text)
    nearest = min(wrong, key=lambda one: abs(len(one.answer.text) - length))
    wrong.remove(nearest)
    return nearest


def _named(data: Data) -> str:
    return ", ".join(file if isinstance(file, str) else file.path for file in data.files)


def _answers(data: Data, right: bool, folders: Mapping[str, Path], ledger: Ledger) -> Iterator[Answered]:
    for record in stream_records(data, ("rating", "conversation"), ledger, folders=folders):
        assert isinstance(record, Conversation | Rating), "only these were asked for"
        match record:
            case Conversation(messages=(*prompt, answer)):
                turns = tuple(prompt)
            case Rating(prompt=turns, response=(answer,)):
                pass
            case _:
                raise DataError(
                    "must end with one answer", file=record.origin.file, line=record.origin.line,
                    fix="give rows of a prompt and an answer",
                )  # fmt: skip
        if answer.role != "assistant":
            raise DataError("has no answer", file=record.origin.file, line=record.origin.line, found=answer.role)
        if isinstance(record, Rating) and record.label is not right:
            ledger.drop(OTHER_LABEL, record.origin)
            continue
        yield Answered(_key(record.columns.get("key"), turns), turns, answer, record)


def _key(column: object, prompt: tuple[Message, ...]) -> str:
    """What rows are joined by: the column where it says something (a 0 does, pandas' empty cell does not), else all
    turns before the answer."""
    nothing = column is None or column == "" or (isinstance(column, float) and math.isnan(column))
    return prompt_key(Prompt(messages=prompt)) if nothing else str(column)


def _row(right: Answered, wrong: Answered) -> dict[str, Any]:
    preference = Preference(
        prompt=right.prompt, chosen=(right.answer,), rejected=(wrong.answer,), tools=right.record.tools
    )
    row = writer_of("preference")(preference)
    key = {"key": right.record.columns["key"]} if "key" in right.record.columns else {}
    return row | key | {"chosen_origin": str(right.record.origin), "rejected_origin": str(wrong.record.origin)}
