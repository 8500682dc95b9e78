"""Preferences between two candidates -> data for a model that reasons about which is better and then says so.

    whet data compare preferences.jsonl --out data/compared

Items (`candidates.py`) become questions with a verdict as their reference, "Image 2 is better" (UnifiedReward-Think,
2505.03318). Three files come of them, which share no item, in whatever order its candidates stand:

    cold_start.jsonl   items that came with a reasoned judgement whose verdict is right: to learn the form from
    prompts.jsonl      the other items, for rejection sampling and online RL
    held_out.jsonl     items kept for evaluation, each asked in both orders

and in compare.json is what became of every row, with the lines of those that were left out.

Annotators and file formats have habits (the better one first), so the order of an item without a judgement is drawn.
It may be asked in both (`orders`): a model that prefers a place is right in one of them by chance alone, and what it
gets wrong, which online RL is given, would teach it to prefer the other place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from whet.data.beside import Beside
from whet.data.images import IMAGE
from whet.data.ledger import Ledger
from whet.data.lines import Lines
from whet.data.reach import free
from whet.data.verdict import TIE, read_verdict, write_verdict
from whet.errors import ConfigError, DataError
from whet.experience.candidates import Item, read_items
from whet.experience.sampled import line_of
from whet.runs.files import write_json, write_text

FILES = ("cold_start.jsonl", "prompts.jsonl", "held_out.jsonl")
ACCOUNT = "compare.json"
FORM = """\
Think first, in <think></think>: go through what was asked for point by point, say how well each of the two does it \
and give both a score from 1 to 10, then add the scores up. Behind it write the verdict alone, in <answer></answer>: \
"{subject} 1 is better" or "{subject} 2 is better".\
"""
IMAGES = f"""\
Two images were made for one caption. Which one fits it better, and is better made?

Caption: {{question}}
Image 1: {{first}}
Image 2: {{second}}

{FORM.replace("{subject}", "Image")}"""
ANSWERS = f"""\
Two answers were given to one question. Which one is better?

{{images}}Question: {{question}}
Answer 1: {{first}}
Answer 2: {{second}}

{FORM.replace("{subject}", "Answer")}"""
"""What is asked. A template of one's own has {question}, {first} and {second}; {images} are those of the question, in
front of everything where it has no place for them, and nowhere where question or template mark (`<image>`) theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitting:
    """How items become rows."""

    held_out: float = 0.1
    """Share of the items that is held out, by a hash of item and seed: items added later move no others."""
    ties: Literal["drop", "keep"] = "drop"
    """What becomes of items whose candidates are equally good."""
    image_folder: str | None = None
    """Where relative paths of pictures start; None for the folder of each file, else the working directory."""
    orders: Literal["drawn", "both"] = "drawn"
    """Whether an item of prompts.jsonl is asked in one order, which is drawn, or in both, a row each."""
    template: str | None = None
    """Text file of what is asked; None takes the one for images or that for answers."""
    seed: int = 42


@dataclass(slots=True)
class Compared:
    """What became of the items."""

    ledger: Ledger
    rows: dict[str, int]
    """Rows of each file; an item that is asked in both orders has two."""
    contradicted: Lines = field(default_factory=Lines)
    """Rows of judgements left out because their verdict is not the row's; the items are kept."""

    def describe(self) -> str:
        text = f"{self.ledger.describe()}; " + ", ".join(f"{num} in {name}" for name, num in self.rows.items())
        num = len(self.contradicted)
        return text + (f"; {num} judgements contradict their row, left out" if num else "")

    def to_json(self) -> dict[str, Any]:
        return self.ledger.to_json() | {"contradicted": self.contradicted.to_json(), "rows": self.rows}


def compare(files: Sequence[str], folder: Path, splitting: Splitting) -> Compared:
    """Write the files into a folder; one that would have no row is not written.

    Raises DataError for a row that cannot be used, and where a file exists already; ConfigError for a template that
    cannot.
    """
    for name in (*FILES, ACCOUNT):
        free(folder / name)
    form = read_template(splitting.template)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
    found = Compared(Ledger(), {})
    for item in kept_items(read_items(files, splitting.image_folder), splitting.ties, found):
        for name, row in rows_of(item, splitting, form, folder):
            rows[name].append(row)
    for name, of_file in rows.items():
        if of_file:
            write_text(folder / name, "".join(map(line_of, of_file)))
    found.rows = {name: len(of_file) for name, of_file in rows.items()}
    write_json(folder / ACCOUNT, found.to_json())
    return found


def kept_items(items: Iterable[Item], ties: Literal["drop", "keep"], found: Compared) -> Iterator[Item]:
    """Each item once, as its first row has it. What is left out is counted."""
    winners: dict[str, str | None] = {}
    for item in items:
        found.ledger.keep(item.origin)
        if item.better == TIE and ties == "drop":
            found.ledger.drop("tie", item.origin)
        elif (name := item.name) in winners:
            same = winners[name] == item.winner
            found.ledger.drop("same item again" if same else "contradicts an earlier row", item.origin)
        else:
            winners[name] = item.winner
            if item.judgement is not None and read_verdict(item.judgement) != item.verdict:
                found.contradicted.add(item.origin)
                item = replace(item, judgement=None)
            yield item


def rows_of(
    item: Item, splitting: Splitting, form: str | None, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of an item and the file each belongs to."""
    if draw(item, splitting.seed, "held out") < splitting.held_out:
        for one in (item, item.swapped()):
            yield "held_out.jsonl", asked(one, form, folder)
    elif item.judgement is not None:
        yield "cold_start.jsonl", asked(item, form, folder)
    else:
        orders = [item, item.swapped()]
        if draw(item, splitting.seed, "order") < 0.5:
            orders.reverse()
        for one in orders if splitting.orders == "both" else orders[:1]:
            yield "prompts.jsonl", asked(one, form, folder)


def draw(item: Item, seed: int, purpose: str) -> float:
    """A number in [0, 1) that item, seed and purpose decide."""
    return int.from_bytes(sha256(f"{purpose} {seed} {item.name}".encode()).digest()[:6], "big") / 2**48


def asked(item: Item, form: str | None, folder: Path) -> dict[str, Any]:
    """What is asked about an item: with its judgement a conversation, without one a prompt with its reference.

    The columns `item` and those of the item's row go along, as `original_NAME` where that name is taken. Raises
    DataError where the template has marks for other pictures than the item's.
    """
    images = item.pictures
    first, second = (IMAGE, IMAGE) if item.subject == "Image" else item.candidates
    text = form or (IMAGES if item.subject == "Image" else ANSWERS)
    placed_by_hand = IMAGE in text or (bool(images) and IMAGE in item.question)
    text = text if "{images}" in text else "{images}" + text
    fill = {"{question}": item.question, "{first}": first, "{second}": second}
    fill["{images}"] = "" if placed_by_hand else f"{IMAGE}\n" * len(item.shown)
    content = filled(text, fill)
    if (images or placed_by_hand) and (marks := content.count(IMAGE)) != len(images):
        raise DataError(
            f"{marks} {IMAGE} marks for {len(images)} pictures", file=item.origin.file, line=item.origin.line,
            field="--template", fix=f"leave {IMAGE} out of the template: the pictures are put where they belong",
        )  # fmt: skip
    row: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    if images:
        row["images"] = [seen_from(folder, path, item) for path in images]
    if item.judgement is not None:
        row["messages"].append({"role": "assistant", "content": item.judgement})
    else:
        row["reference"] = write_verdict(item.verdict)
    row["item"] = item.name
    return row | {f"original_{name}" if name in row else name: value for name, value in item.columns.items()}


def filled(template: str, fill: Mapping[str, str]) -> str:
    """Every place filled in one go, so that nothing filled in is taken for a place."""
    return re.sub("|".join(map(re.escape, fill)), lambda found: fill[found[0]], template)


def seen_from(folder: Path, path: str, item: Item) -> str:
    """What the rows of a folder call a picture: a path from there where it lies with the item's file, so that all can
    be moved together, else an absolute one. One that came inside a row is put into the folder; a `data:` URL stays."""
    beside = Beside(folder / ACCOUNT)
    kept = beside.kept(path)
    beside.copy()
    if kept != path or path.startswith("data:"):
        return kept
    file = Path(path).absolute()
    lies_in = file.parent.resolve()  # `..` behind a link leads elsewhere
    if not lies_in.is_relative_to(Path(item.origin.file).parent.resolve()):
        return str(file)
    return os.path.relpath(lies_in / file.name, folder.resolve())


def read_template(path: str | None) -> str | None:
    """The text of a template file. Raises ConfigError where it cannot be read, or has no place for a part."""
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise ConfigError("cannot be read", field="--template", found=f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", field="--template", found=path, fix="save it as UTF-8") from None
    for place in ("{question}", "{first}", "{second}"):
        if text.count(place) != 1:
            raise ConfigError(f"must have {place} once", field="--template", found=f"{text.count(place)} in {path}")
    return text
