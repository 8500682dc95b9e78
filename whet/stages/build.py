"""A model made from the user's own text where there is none yet: `model.build` of a plan."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from whet.config.data import Data
from whet.config.model import Build, Model
from whet.runs.files import writing
from whet.schema.records import (
    Conversation,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    RecordKind,
    Scored,
)

ANY_KIND: tuple[RecordKind, ...] = get_args(RecordKind)


def build_model(model: Model) -> None:
    """Build the tiny checkpoint that `model.build` asks for, unless `model.path` is there already."""
    target = Path(model.path)
    if model.build is None or target.exists():
        return
    from whet.models.tiny import build_tiny

    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        build_tiny(
            temporary, texts(model.build), vocab_size=model.build.vocab_size, hidden_size=model.build.hidden_size,
            num_layers=model.build.num_layers, num_heads=model.build.num_heads,
            max_positions=model.build.max_positions, seed=model.build.seed,
        )  # fmt: skip
        temporary.replace(target)
    print(f"built a random {model.build.hidden_size}x{model.build.num_layers} model in {target}")


def texts(build: Build) -> Iterator[str]:
    """All text of the files, message by message."""
    from whet.data.ledger import Ledger
    from whet.data.sources import stream_records

    for record in stream_records(Data(files=build.files, on_bad_row="drop"), ANY_KIND, Ledger()):
        yield from (message.text for message in messages_of(record))


def messages_of(record: Record) -> tuple[Message, ...]:
    """Every message in a record, candidates as assistant turns."""
    match record:
        case Conversation(messages=messages) | Prompt(messages=messages):
            return messages
        case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
            return (*prompt, *chosen, *rejected)
        case Rating(prompt=prompt, response=response):
            return (*prompt, *response)
        case Ranking(prompt=prompt, responses=responses) | Scored(prompt=prompt, responses=responses):
            return (*prompt, *(Message("assistant", text) for text in responses))
