"""Many rendered rows as a few flat arrays: four bytes a token, nothing to read but the row that is asked for.

    two preferences, the first with the prompt p q and the responses a, b c
    ids    p q a b c ...     ends  0 2 3 5 ...   sequence s is ids[ends[s] : ends[s + 1]]
    rows   0 3 ...           row r is the sequences rows[r] to rows[r + 1]: a prompt and its responses

A conversation is one sequence, with a weight for each token. Rows refer to their pictures by number;
a picture is kept once, or once in each of the tables that were joined.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from whet.data.rendered import Rendered, RenderedGroup
from whet.schema.pictures import Picture
from whet.schema.records import Origin

DIGEST = 32
"""Bytes of a picture's digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """R rows of S sequences and T tokens in all, V values."""

    ids: NDArray[np.int32]
    """[T] token ids."""
    ends: NDArray[np.int64]
    """[S + 1] where each sequence begins, and where the last one ends."""
    rows: NDArray[np.int64]
    """[R + 1] the first sequence of each row, and S."""
    weights: NDArray[np.float32]
    """[T] weight of each token for conversations; empty for groups."""
    values: NDArray[np.float64]
    """[V] values of all rows."""
    value_ends: NDArray[np.int64]
    """[R + 1] where the values of each row begin, and V."""
    files: NDArray[np.int32]
    """[R] the file each row came from, as an index into the names beside."""
    lines: NDArray[np.int64]
    """[R] its line there."""
    last: NDArray[np.bool_]
    """[R] false where more rows of the same record follow."""
    shown: NDArray[np.int32]
    """[K] the pictures of all rows, as numbers of those below."""
    shown_ends: NDArray[np.int64]
    """[R + 1] where the pictures of each row begin, and K."""
    sources: NDArray[np.uint8]
    """Files or `data:` URLs of P pictures, in UTF-8."""
    source_ends: NDArray[np.int64]
    """[P + 1] where each of them begins, and the bytes of all."""
    digests: NDArray[np.uint8]
    """[P, 32] their digests."""
    grids: NDArray[np.int32]
    """[P, 3] their tokens, and rows and columns of the grid; both 0 where there is none."""


ARRAYS = tuple(field.name for field in fields(Arrays))
BOUNDS = ("ends", "rows", "value_ends", "shown_ends", "source_ends")
"""Arrays that begin with 0 and end with a total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Arrays and the names of the files that their rows came from."""

    arrays: Arrays
    names: tuple[str, ...]
    grouped: bool
    """Whether rows are groups; else they are conversations."""


def table_of(rows: Sequence[Rendered | RenderedGroup]) -> Table:
    """The rows, all of one type, as arrays."""
    grouped = bool(rows) and isinstance(rows[0], RenderedGroup)
    sequences = [_sequences(row) for row in rows]
    values = [row.values if isinstance(row, RenderedGroup) else () for row in rows]
    weights = [row.weights for row in rows if isinstance(row, Rendered)]
    names = {name: index for index, name in enumerate(dict.fromkeys(row.origin.file for row in rows))}
    distinct = dict.fromkeys(chain.from_iterable(row.pictures for row in rows))
    pictures = {picture: number for number, picture in enumerate(distinct)}
    urls = [os.fsencode(picture.source) for picture in pictures]
    arrays = Arrays(
        ids=_flat(chain.from_iterable(sequences), np.int32),
        ends=_bounds(len(ids) for ids in chain.from_iterable(sequences)),
        rows=_bounds(map(len, sequences)),
        weights=_flat(weights, np.float32),
        values=_flat(values, np.float64),
        value_ends=_bounds(map(len, values)),
        files=np.fromiter((names[row.origin.file] for row in rows), np.int32),
        lines=np.fromiter((row.origin.line for row in rows), np.int64),
        last=np.fromiter((not isinstance(row, Rendered) or row.last for row in rows), np.bool_),
        shown=_flat(([pictures[picture] for picture in row.pictures] for row in rows if row.pictures), np.int32),
        shown_ends=_bounds(len(row.pictures) for row in rows),
        sources=np.frombuffer(b"".join(urls), np.uint8),
        source_ends=_bounds(map(len, urls)),
        digests=np.frombuffer(bytes.fromhex("".join(p.digest for p in pictures)), np.uint8).reshape(-1, DIGEST),
        grids=np.array([(p.num_tokens, *(p.grid or (0, 0))) for p in pictures], np.int32).reshape(-1, 3),
    )
    return Table(arrays=arrays, names=tuple(names), grouped=grouped)


class TokenRows(Sequence[Rendered | RenderedGroup]):
    """The rows of a table, made when asked for. Their ids and weights are views of the arrays, not to be written to."""

    def __init__(self, table: Table, order: NDArray[np.int64] | None = None, digest: str | None = None) -> None:
        """`order` are places in the table, those of the first row, the second, ...; without it all, as they come.
        `digest` is what `digest_of` gives, where it is known."""
        self._arrays, self._names, self._grouped = table.arrays, table.names, table.grouped
        self._order = np.arange(len(table.arrays.lines)) if order is None else order
        self._digest = digest

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Rendered | RenderedGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Rendered | RenderedGroup]: ...
    def __getitem__(self, index: int | slice) -> Rendered | RenderedGroup | Sequence[Rendered | RenderedGroup]:
        if isinstance(index, slice):
            return [self._row(i) for i in self._order[index].tolist()]
        return self._row(int(self._order[range(len(self))[index]]))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[R] tokens of each row, a prompt counted once."""
        starts: NDArray[np.int64] = np.asarray(self._arrays.ends)[self._arrays.rows]
        return np.diff(starts)[self._order]

    @cached_property
    def num_responses(self) -> NDArray[np.int64]:
        """[R] responses of each row, 0 of a conversation."""
        return np.diff(self._arrays.rows)[self._order] - 1

    def values(self, num: int) -> NDArray[np.float64]:
        """All values of the first `num` rows."""
        ends, order = np.asarray(self._arrays.value_ends), self._order[:num]
        mine = np.zeros(len(self._arrays.lines), bool)
        mine[order] = True
        found: NDArray[np.float64] = np.asarray(self._arrays.values)[np.repeat(mine, np.diff(ends))]
        return found

    @property
    def largest_id(self) -> int:
        """Of all tokens."""
        return int(np.asarray(self._arrays.ids).max(initial=0))

    @property
    def with_pictures(self) -> list[int]:
        """Places of the rows that have any."""
        if not len(self._arrays.shown):
            return []
        return np.flatnonzero(np.diff(self._arrays.shown_ends)[self._order]).tolist()

    @cached_property
    def digest(self) -> str:
        """Hash of the token ids, how they are divided, and what is seen in the pictures: the same for the same rows,
        wherever they were read from."""
        return self._digest or digest_of(self._arrays, self._order)

    def _row(self, index: int) -> Rendered | RenderedGroup:
        arrays = self._arrays
        origin = Origin(file=self._names[int(arrays.files[index])], line=int(arrays.lines[index]))
        first, *others = self._spans(index)
        pictures = self._pictures(index)
        if not self._grouped:
            weights = _as_sequence(arrays.weights[first])
            return Rendered(
                ids=_as_sequence(arrays.ids[first]), weights=weights, origin=origin, last=bool(arrays.last[index]),
                pictures=pictures,
            )  # fmt: skip
        values = arrays.values[arrays.value_ends[index] : arrays.value_ends[index + 1]]
        return RenderedGroup(
            prompt_ids=_as_sequence(arrays.ids[first]),
            response_ids=tuple(_as_sequence(arrays.ids[span]) for span in others),
            values=tuple(values.tolist()),
            origin=origin,
            pictures=pictures,
        )

    def _pictures(self, index: int) -> tuple[Picture, ...]:
        arrays = self._arrays
        if not len(arrays.shown):
            return ()
        first, end = arrays.shown_ends[index], arrays.shown_ends[index + 1]
        return tuple(map(self._picture, arrays.shown[first:end].tolist()))

    def _picture(self, number: int) -> Picture:
        arrays = self._arrays
        source = arrays.sources[arrays.source_ends[number] : arrays.source_ends[number + 1]].tobytes()
        num_tokens, rows, columns = arrays.grids[number].tolist()
        return Picture(
            source=os.fsdecode(source), digest=arrays.digests[number].tobytes().hex(), num_tokens=num_tokens,
            grid=(rows, columns) if rows else None,
        )  # fmt: skip

    def _spans(self, index: int) -> Iterator[slice]:
        ends = self._arrays.ends[self._arrays.rows[index] : self._arrays.rows[index + 1] + 1].tolist()
        return map(slice, ends[:-1], ends[1:])


def digest_of(arrays: Arrays, order: NDArray[np.int64], known: Mapping[str, str] | None = None) -> str:
    """Hash of the rows that are taken in this order: their ids, how these are divided, what is seen in pictures.

    `known` are hashes of single arrays, for those too large to go through again.
    """
    parts = {"ids": arrays.ids, "ends": arrays.ends, "rows": arrays.rows, "order": order}
    if len(arrays.shown):
        parts |= {"digests": arrays.digests[arrays.shown], "shown_ends": arrays.shown_ends}
    hashes = {} if known is None else {name: known[name] for name in ("ids", "ends", "rows", "order")}
    found = [hashes.get(name) or sha256(np.ascontiguousarray(array).data).hexdigest() for name, array in parts.items()]
    return sha256(repr(found).encode()).hexdigest()


def _sequences(row: Rendered | RenderedGroup) -> tuple[Sequence[int], ...]:
    match row:
        case Rendered():
            return (row.ids,)
        case RenderedGroup():
            return (row.prompt_ids, *row.response_ids)


def _flat(parts: Iterable[Sequence[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(parts), dtype)


def _bounds(sizes: Iterable[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *sizes], dtype=np.int64)


def _as_sequence(array: NDArray[Any]) -> Sequence[Any]:
    """An array is a sequence in all that rows are used for, though not by its type."""
    return cast(Sequence[Any], array)
