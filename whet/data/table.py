"""Many rendered rows as a few flat arrays: four bytes a token, nothing to read but the row that is asked for.

    two preferences, the first with the prompt p q and the responses a, b c
    ids    p q a b c ...     ends  0 2 3 5 ...   sequence s is ids[ends[s] : ends[s + 1]]
    rows   0 3 ...           row r is the sequences rows[r] to rows[r + 1]: a prompt and its responses

A conversation is one sequence, with a weight for each token. Rows refer to their pictures by number;
a picture is kept once, or once in each of the tables that were joined.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
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


def joined(tables: Sequence[Table]) -> Table:
    """The rows of all tables, at least one, one after the other."""
    names = {name: index for index, name in enumerate(dict.fromkeys(chain.from_iterable(t.names for t in tables)))}
    arrays = {}
    for field in ARRAYS:
        parts = [getattr(table.arrays, field) for table in tables]
        if field in BOUNDS:
            bases = np.cumsum([0, *(part[-1] for part in parts)], dtype=np.int64)
            shifted = (part[1:] + base for part, base in zip(parts, bases[:-1], strict=True))
            arrays[field] = np.concatenate([np.zeros(1, np.int64), *shifted])
        elif field == "shown":
            firsts = np.cumsum([0, *(len(table.arrays.digests) for table in tables)], dtype=np.int32)
            arrays[field] = np.concatenate([part + first for part, first in zip(parts, firsts[:-1], strict=True)])
        elif field == "files":
            indices = [np.array([names[name] for name in table.names], np.int32) for table in tables]
            arrays[field] = np.concatenate([index[part] for index, part in zip(indices, parts, strict=True)])
        else:
            arrays[field] = np.concatenate(parts)
    grouped = any(table.grouped for table in tables)
    return Table(arrays=Arrays(**arrays), names=tuple(names), grouped=grouped)


class TokenRows(Sequence[Rendered | RenderedGroup]):
    """The rows of a table, made when asked for. Their ids and weights are views of the arrays, not to be written to."""

    def __init__(self, table: Table) -> None:
        self._arrays, self._names, self._grouped = table.arrays, table.names, table.grouped

    def __len__(self) -> int:
        return len(self._arrays.lines)

    @overload
    def __getitem__(self, index: int) -> Rendered | RenderedGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Rendered | RenderedGroup]: ...
    def __getitem__(self, index: int | slice) -> Rendered | RenderedGroup | Sequence[Rendered | RenderedGroup]:
        if isinstance(index, slice):
            return [self._row(i) for i in range(len(self))[index]]
        return self._row(range(len(self))[index])

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[R] tokens of each row, a prompt counted once."""
        starts: NDArray[np.int64] = np.asarray(self._arrays.ends)[self._arrays.rows]
        return np.diff(starts)

    @property
    def with_pictures(self) -> list[int]:
        """Places of the rows that have any."""
        return np.flatnonzero(np.diff(self._arrays.shown_ends)).tolist() if len(self._arrays.shown) else []

    @cached_property
    def digest(self) -> str:
        """Hash of the token ids, how they are divided, and what is seen in the pictures: the same for the same rows,
        wherever they were read from."""
        digest = sha256()
        arrays = self._arrays
        for array in (arrays.ids, arrays.ends, arrays.rows):
            digest.update(np.ascontiguousarray(array).data)
        if len(arrays.shown):
            digest.update(arrays.digests[arrays.shown].tobytes())
            digest.update(np.ascontiguousarray(arrays.shown_ends).data)
        return digest.hexdigest()

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
