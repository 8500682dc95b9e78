"""What is answered in a record, and what the data says of each answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from whet.config.objective import Margin
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


def values_of(record: Answered, margin: Margin = "none") -> tuple[float, ...]:
    """A number for each answer, or nothing: see `RenderedGroup.values`.

    `margin` says where a preference's comes from. Raises DataError for a negative one.
    """
    match record:
        case Preference():
            lead = _lead(record, margin)
            return () if lead is None else (lead, 0.0)
        case Rating():
            return (float(record.label),)
        case Ranking(ranks=ranks):
            return tuple(rank - min(ranks) + 1.0 for rank in ranks)  # some count from 0
        case Scored():
            return record.values


def _lead(record: Preference, margin: Margin) -> float | None:
    """By how much the data calls chosen better; None where it is not asked or does not say."""
    if margin == "none":
        return None
    if record.margin is not None:
        return _not_negative(float(record.margin), "margin", f"{record.margin:g}", record.origin)
    chosen, rejected = record.chosen_score, record.rejected_score
    if margin == "column" or chosen is None or rejected is None:
        return None
    return _not_negative(float(chosen - rejected), "chosen_score", f"{chosen:g} against {rejected:g}", record.origin)


def _not_negative(lead: float, field: str, found: str, origin: Origin) -> float:
    """The lead itself. A negative one would ask for less than the right order, without a word."""
    if lead >= 0:
        return lead
    raise DataError(
        "calls the rejected answer the better one", file=origin.file, line=origin.line, field=field, found=found,
        fix="swap the answers, remove the row, or set data.on_bad_row=drop or objective.margin=none",
    )  # fmt: skip


def tools_of(record: Answered) -> Sequence[Mapping[str, Any]]:
    return record.tools


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
