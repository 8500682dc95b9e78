"""Many rendered rows as a few flat arrays: four bytes a token, nothing to read but the row that is asked for.

    two preferences, the first with the prompt p q and the responses a, b c
    ids    p q a b c ...     ends  0 2 3 5 ...   sequence s is ids[ends[s] : ends[s + 1]]
    rows   0 3 ...           row r is the sequences rows[r] to rows[r + 1]: a prompt and its responses

A conversation is one sequence, with a weight for each token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from whet.data.rendered import Rendered, RenderedGroup
from whet.schema.records import Origin


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


ARRAYS = tuple(field.name for field in fields(Arrays))
BOUNDS = ("ends", "rows", "value_ends")
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

    @cached_property
    def digest(self) -> str:
        """Hash of the token ids and how they are divided: the same for the same rows, wherever they were read from."""
        digest = sha256()
        for array in (self._arrays.ids, self._arrays.ends, self._arrays.rows):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _row(self, index: int) -> Rendered | RenderedGroup:
        arrays = self._arrays
        origin = Origin(file=self._names[int(arrays.files[index])], line=int(arrays.lines[index]))
        first, *others = self._spans(index)
        if not self._grouped:
            weights = _as_sequence(arrays.weights[first])
            return Rendered(
                ids=_as_sequence(arrays.ids[first]), weights=weights, origin=origin, last=bool(arrays.last[index])
            )
        values = arrays.values[arrays.value_ends[index] : arrays.value_ends[index + 1]]
        return RenderedGroup(
            prompt_ids=_as_sequence(arrays.ids[first]),
            response_ids=tuple(_as_sequence(arrays.ids[span]) for span in others),
            values=tuple(values.tolist()),
            origin=origin,
        )

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
