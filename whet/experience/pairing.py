"""Right answers of one model against wrong ones of another, joined by prompt: preferences from two models or two runs.

    chosen = Data(files=("runs/b/stages/01-reject/accepted.jsonl",))
    rejected = Data(files=("runs/a/stages/01-reject/rejected.jsonl",))
    pair(chosen, rejected, Path("pairs.jsonl"))

Rows belong together by their column `key`, which `reject` gives every prompt, else by the prompt's turns. So the order
of the files does not matter, and the same question with other pictures is another question. Only prompts with both a
right and a wrong answer make pairs: the inner join of the two sides. Where both sides name the files of both models, it
is that of their unions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from whet.config.data import Data
from whet.data.convert import writer_of
from whet.data.ledger import Ledger
from whet.data.sources import stream_records
from whet.data.split import prompt_key
from whet.errors import DataError
from whet.runs.files import json_line, replacing
from whet.schema.records import Conversation, Message, Preference, Rating

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
    """Wrong answers with the words of a right one."""
    chosen: Ledger = field(default_factory=Ledger)
    """Rows of the right answers, with the lines of those in no pair."""
    rejected: Ledger = field(default_factory=Ledger)
    """Rows of the wrong answers."""

    def describe(self) -> str:
        text = f"{self.pairs:,} pairs of {self.prompts:,} prompts; left over: {self.chosen_alone:,} right and "
        text += f"{self.rejected_alone:,} wrong answers"
        return text + (f"; {self.same_text:,} wrong ones say what a right one says" if self.same_text else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"chosen": self.chosen.to_json(), "rejected": self.rejected.to_json()}


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and the prompt it is to."""

    key: str
    prompt: tuple[Message, ...]
    answer: Message
    record: Conversation | Rating


def pair(
    chosen: Data, rejected: Data, out: Path, *, num: int = 1, folders: Mapping[str, Path] = {}
) -> Paired:
    """Write at most `num` pairs a prompt, each answer in one of them, with answers of like length together.

    `folders` are those of stages by name. The wrong answers are held in memory. Raises DataError where `out` exists, or
    where no prompt is on both sides.
    """
    if out.exists():
        raise DataError("exists already, and is not overwritten", file=str(out), fix="choose another name or remove it")
    waiting: dict[str, list[Answered]] = {}
    found, given = Paired(), dict[str, int]()
    for one in _answers(rejected, folders, found.rejected):
        waiting.setdefault(one.key, []).append(one)
    with replacing(out) as file:
        for right in _answers(chosen, folders, found.chosen):
            full = given.get(right.key, 0) >= num
            wrong = None if full else _nearest(right, waiting.get(right.key, []), found)
            if wrong is None:
                found.chosen_alone += 1
                found.chosen.drop(ENOUGH if full else "no wrong answer for it", right.record.origin)
                continue
            given[right.key] = given.get(right.key, 0) + 1
            file.write(json_line(_row(right, wrong)))
        found.pairs, found.prompts = sum(given.values()), len(given)
        for left in chain.from_iterable(waiting.values()):
            found.rejected_alone += 1
            found.rejected.drop("no right answer took it", left.record.origin)
        if not found.pairs:
            raise DataError(
                "no prompt is in both files", file=_named(chosen), found=f"none of those of {_named(rejected)}",
                fix="give files of the same prompts",
            )  # fmt: skip
    return found


def _nearest(right: Answered, wrong: list[Answered], found: Paired) -> Answered | None:
    """Take the wrong answer whose length is nearest; those that say the same are none."""
    same = [one for one in wrong if one.answer.text.strip() == right.answer.text.strip()]
    for one in same:
        wrong.remove(one)
        found.rejected.drop("says what a right answer says", one.record.origin)
    found.same_text += len(same)
    if not wrong:
        return None
    length = len(right.answer.text)
    nearest = min(wrong, key=lambda one: abs(len(one.answer.text) - length))
    wrong.remove(nearest)
    return nearest


def _named(data: Data) -> str:
    return ", ".join(file if isinstance(file, str) else file.path for file in data.files)


def _answers(data: Data, folders: Mapping[str, Path], ledger: Ledger) -> Iterator[Answered]:
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
        yield Answered(str(record.columns.get("key") or prompt_key(record)), turns, answer, record)


def _row(right: Answered, wrong: Answered) -> dict[str, Any]:
    preference = Preference(
        prompt=right.prompt, chosen=(right.answer,), rejected=(wrong.answer,), tools=right.record.tools
    )
    row = writer_of("preference")(preference)
    key = {"key": right.record.columns["key"]} if "key" in right.record.columns else {}
    return row | key | {"chosen_origin": str(right.record.origin), "rejected_origin": str(wrong.record.origin)}
