"""What is answered in a record, and what the data says of each answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from whet.errors import DataError
from whet.schema.records import Message, Origin, Preference, Ranking, Rating, Scored

Answered = Preference | Rating | Ranking | Scored
"""A record of one prompt and K answers to it."""


def answers_of(record: Answered) -> tuple[Message, ...]:
    """The answers, a preference's chosen one first. Raises DataError where one of them is several turns."""
    match record:
        case Preference():
            return _only(record.chosen, "chosen", record.origin), _only(record.rejected, "rejected", record.origin)
        case Rating():
            return (_only(record.response, "response", record.origin),)
        case Ranking() | Scored():
            return tuple(Message("assistant", text) for text in record.responses)


def values_of(record: Answered) -> tuple[float, ...]:
    """A number for each answer, or nothing: see `RenderedGroup.values`."""
    match record:
        case Preference(margin=float() | int() as margin):
            return (float(margin), 0.0)
        case Preference(chosen_score=float() | int() as chosen, rejected_score=float() | int() as rejected):
            return (float(chosen - rejected), 0.0)
        case Preference():
            return ()
        case Rating():
            return (float(record.label),)
        case Ranking(ranks=ranks):
            return tuple(rank - min(ranks) + 1.0 for rank in ranks)  # some count from 0
        case Scored():
            return record.values


def tools_of(record: Answered) -> Sequence[Mapping[str, Any]]:
    return record.tools if isinstance(record, Preference | Rating) else ()


def _only(turns: Sequence[Message], field: str, origin: Origin) -> Message:
    if len(turns) == 1:
        return turns[0]
    raise DataError(
        f"has {len(turns)} turns, and one answer is compared with another",
        file=origin.file,
        line=origin.line,
        field=field,
        fix="move what the answers have in common into the prompt",
    )
