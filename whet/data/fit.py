"""Rendered rows brought to the length a plan allows, with an account of what was cut or dropped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, TypeVar

from whet.data.ledger import Ledger
from whet.data.places import held
from whet.data.rendered import Rendered, RenderedGroup
from whet.errors import DataError

OVERLONG = "longer than max_length"
PROMPT_OVERLONG = "prompt alone longer than max_length"
SAME_AFTER_CUT = "responses equal once truncated"

Row = TypeVar("Row", bound=Rendered | RenderedGroup)


def fit(
    rows: Iterable[Row],
    max_length: int,
    on_overlong: Literal["truncate", "drop", "error"],
    ledger: Ledger,
    *,
    place_id: int | None = None,
) -> list[Row]:
    """The rows at no more than `max_length` tokens; whoever is cut or dropped goes into the ledger.

    A response is cut at its end, and then learns no end of turn. A group whose responses are all equal once cut is
    dropped: it prefers nothing. Under `error` the first longer row raises DataError.

    No picture is ever cut: what is cut off are trained tokens, from the end, and pictures stand before them. Those of
    a conversation's later turns go with these turns. `place_id` is the placeholder of rows with pictures.
    """
    fitted: list[Row] = []
    record: list[tuple[Row, Row | str]] = []
    for row in rows:
        record.append((row, _cut(row, max_length, on_overlong, place_id)))
        if isinstance(row, RenderedGroup) or row.last:
            fitted += _account(record, ledger)
            record = []
    return fitted


def _account(record: list[tuple[Row, Row | str]], ledger: Ledger) -> list[Row]:
    """What is left of a record's rows. It counts as dropped where nothing is, as truncated where a part is missing."""
    kept = [result for _, result in record if not isinstance(result, str)]
    origin = record[0][0].origin
    if not kept:
        ledger.drop(next(result for _, result in record if isinstance(result, str)), origin)
    elif len(kept) < len(record) or any(result is not row for row, result in record):
        ledger.truncate(origin)
    return kept


def _cut(
    row: Row, max_length: int, on_overlong: Literal["truncate", "drop", "error"], place_id: int | None
) -> Row | str:
    """The row itself where it fits, a shorter one, or the reason to drop it."""
    match row:
        case Rendered():
            length = len(row.ids)
        case RenderedGroup():
            length = len(row.prompt_ids) + max(len(ids) for ids in row.response_ids)
    if length <= max_length:
        return row
    match on_overlong:
        case "error":
            raise DataError(
                f"{length} tokens, and data.max_length is {max_length}",
                file=row.origin.file,
                line=row.origin.line,
                fix="raise data.max_length, or set data.on_overlong to truncate or drop",
            )
        case "drop":
            return OVERLONG
        case "truncate":
            return _truncated(row, max_length, place_id)


def _truncated(row: Row, max_length: int, place_id: int | None) -> Row | str:
    match row:
        case Rendered():
            # Tokens after the last trained one teach nothing: they go with the cut.
            end = max((i + 1 for i, weight in enumerate(row.weights[:max_length]) if weight), default=0)
            if not end:
                return PROMPT_OVERLONG
            ids, pictures = row.ids[:end], row.pictures
            if pictures:
                assert place_id is not None, "rows with pictures come with their placeholder"
                pictures = held(ids, pictures, place_id)
            return replace(row, ids=ids, weights=row.weights[:end], pictures=pictures)
        case RenderedGroup():
            room = max_length - len(row.prompt_ids)
            if room <= 0:
                return PROMPT_OVERLONG
            first, *others = cut = tuple(ids[:room] for ids in row.response_ids)
            # Where only some have become equal, the others still say something, and equals pull in no direction.
            if others and all(other == first for other in others):
                return SAME_AFTER_CUT
            return replace(row, response_ids=cut)
