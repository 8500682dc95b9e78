"""File row -> records, one exhaustive `match` over the formats.

read_row(Row({"instruction": "Add 2 and 3.", "output": "5"}, origin), "alpaca", "conversation")
    -> (Conversation(messages=(Message("user", "Add 2 and 3."), Message("assistant", "5"))),)
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.config.data import Format
from whet.data import conversations, graded, preferences
from whet.data.images import place_images
from whet.data.kinds import MADE_FROM, WORKED_NAMES, as_kind, column, reference_of
from whet.data.messages import with_system
from whet.data.row import Row
from whet.data.tools import read_tools
from whet.schema.records import Prompt, Record, RecordKind

KIND: dict[Format, RecordKind] = {
    "alpaca": "conversation",
    "sharegpt": "conversation",
    "messages": "conversation",
    "prompt_completion": "conversation",
    "self_instruct": "conversation",
    "openorca": "conversation",
    "gsm8k": "conversation",
    "preference": "preference",
    "hh": "preference",
    "pku": "preference",
    "ultrafeedback": "scored",
    "kto": "rating",
    "ranking": "ranking",
    "scored": "scored",
    "weighted": "scored",
    "prompt": "prompt",
    "text": "prompt",
}
"""What the rows of a format are before anyone asks for something else."""
OWN_ANSWER = "own_answer"
"""Where rows that whet writes keep a prompt's `answer`: under its own name it would make a conversation of the row."""


def kind_for(format: Format, want: Sequence[RecordKind]) -> RecordKind | None:
    """The kind to read a format as: its own where that is wanted, else the first it can become, else None."""
    own = KIND[format]
    if own in want:
        return own
    # A weight is a share, not a judgement: it makes no pairs.
    refused = {"preference"} if format == "weighted" else set()
    return next((kind for kind in want if own in MADE_FROM[kind] and kind not in refused), None)


def read_row(row: Row, format: Format, kind: RecordKind) -> Sequence[Record]:
    """The records of one row, usually one. Raises DataError (a bad row) or NothingToLearn (a sound one without use)."""
    return [made for record in parse_row(row, format) for made in as_kind(record, kind)]


def parse_row(row: Row, format: Format) -> Sequence[Record]:
    """The records as the format has them. Raises DataError where the row cannot be read."""
    for name in ("videos", "audios"):
        if row.values.get(name):
            raise row.error("is not supported: whet reads text and images", field=name)
    match format:
        case "alpaca":
            return (conversations.alpaca(row),)
        case "sharegpt" | "messages":
            return (conversations.turns(row),)
        case "prompt_completion":
            return (conversations.prompt_completion(row),)
        case "self_instruct":
            return tuple(conversations.self_instruct(row))
        case "openorca":
            return (conversations.openorca(row),)
        case "gsm8k":
            return (conversations.gsm8k(row),)
        case "preference":
            return (preferences.preference(row),)
        case "hh":
            return (preferences.hh(row),)
        case "pku":
            return (preferences.pku(row),)
        case "ultrafeedback":
            return (graded.ultrafeedback(row),)
        case "kto":
            return (graded.kto(row),)
        case "ranking":
            return (graded.ranking(row),)
        case "scored":
            return (graded.scored(row),)
        case "weighted":
            return (graded.weighted(row),)
        case "prompt" | "text":
            return (prompt(row),)
        case "auto":
            raise ValueError("detect the format first")


def prompt(row: Row) -> Prompt:
    """A question, as a plain line or an object; the gold answer, where there is one, becomes the reference."""
    turns = with_system(row, conversations.prompt_turns(row))
    turns = place_images(row, turns, listed=conversations.has_turns(row))
    reference = reference_of(row.values)
    if reference is None:
        reference = next(
            (row.as_text(row.take(name), name) for name in conversations.ANSWER_NAMES if name in row), None
        )
    if turns[-1].role == "assistant":
        turns, reference = turns[:-1], reference if reference is not None else turns[-1].text
    preferences.check_prompt(row, turns)
    reference = reference if reference is not None else column(row.values, WORKED_NAMES)
    answer, tools = row.maybe_text(OWN_ANSWER) or None, read_tools(row)
    return Prompt(
        messages=turns, reference=reference, answer=answer, tools=tools, columns=row.rest(), origin=row.origin
    )
