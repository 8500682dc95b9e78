"""Rows as flat arrays: every row comes back as it was, alone or among the chunks it was made in."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data.rendered import Rendered, RenderedGroup
from whet.data.shelf import Shelf
from whet.data.store import finish
from whet.data.table import TokenRows, table_of
from whet.schema.pictures import Picture
from whet.schema.records import Origin

Row = Rendered | RenderedGroup

IDS = st.lists(st.integers(0, 200_000), max_size=6).map(tuple)
ORIGINS = st.builds(Origin, file=st.sampled_from(["a.jsonl", "b.jsonl", "c/ü.json"]), line=st.integers(1, 1 << 40))
PICTURES = st.lists(
    st.builds(
        Picture,
        source=st.sampled_from(["a.png", "ü/b.png", "data:image/png;base64,AAAA"]),
        digest=st.sampled_from(["0f" * 32, "a1" * 32]),
        num_tokens=st.integers(1, 9),
        grid=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ),
    max_size=3,
).map(tuple)
CONVERSATIONS = IDS.flatmap(
    lambda ids: st.builds(
        Rendered, ids=st.just(ids), last=st.booleans(), origin=ORIGINS, pictures=PICTURES,
        weights=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0]) for _ in ids]),
    )
)  # fmt: skip
GROUPS = st.lists(IDS, min_size=1, max_size=4).flatmap(
    lambda answers: st.builds(
        RenderedGroup, prompt_ids=IDS, response_ids=st.just(tuple(answers)), origin=ORIGINS, pictures=PICTURES,
        values=st.just(()) | st.tuples(*[st.floats(allow_nan=False) for _ in answers]),
    )
)  # fmt: skip
CHUNKS = st.lists(st.lists(CONVERSATIONS, max_size=4), min_size=1, max_size=4) | st.lists(
    st.lists(GROUPS, max_size=4), min_size=1, max_size=4
)


def plain(row: Row) -> Row:
    """The row with tuples where it has views of arrays."""
    match row:
        case Rendered():
            ids, weights = (tuple(np.asarray(part).tolist()) for part in (row.ids, row.weights))
            return replace(row, ids=ids, weights=weights)
        case RenderedGroup():
            prompt, *answers = (tuple(np.asarray(ids).tolist()) for ids in (row.prompt_ids, *row.response_ids))
            return replace(row, prompt_ids=prompt, response_ids=tuple(answers))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(chunks=CHUNKS)
def test_rows_come_back_as_they_were(chunks: list[list[Row]]) -> None:
    given_rows = [row for chunk in chunks for row in chunk]
    rows = on_disk(chunks, range(len(given_rows)))
    assert [plain(row) for row in rows] == given_rows
    assert rows.lengths.tolist() == [row.num_tokens for row in given_rows]
    assert rows.digest == TokenRows(table_of(given_rows)).digest, "hashed as it was written, or from what was read"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(chunks=CHUNKS, draw=st.randoms(use_true_random=False))
def test_rows_in_another_order(chunks: list[list[Row]], draw: random.Random) -> None:
    given_rows = [row for chunk in chunks for row in chunk]
    order = draw.sample(range(len(given_rows)), len(given_rows))
    rows, wanted = on_disk(chunks, order), [given_rows[place] for place in order]
    assert [plain(row) for row in rows] == wanted == [plain(row) for row in rows[:]]
    assert rows.lengths.tolist() == [row.num_tokens for row in wanted]
    assert rows.with_pictures == [place for place, row in enumerate(wanted) if row.pictures]
    groups = [row for row in wanted if isinstance(row, RenderedGroup)]
    if groups:
        assert rows.num_responses.tolist() == [len(row.response_ids) for row in groups]
        half = len(groups) // 2
        assert sorted(rows.values(half)) == sorted(value for row in groups[:half] for value in row.values)


def on_disk(chunks: list[list[Row]], order: Sequence[int]) -> TokenRows:
    """The rows of all chunks as a table that grew by them has them."""
    with tempfile.TemporaryDirectory() as name:
        shelf = Shelf(Path(name))
        for chunk in chunks:
            shelf.add(table_of(chunk))
        return finish(shelf, np.array(order, np.int64), 0, {}, "").rows


def test_arrays_of_two_preferences() -> None:
    rows = [
        RenderedGroup(prompt_ids=(7, 8), response_ids=((1,), (2, 3)), values=(0.5, 0.0)),
        RenderedGroup(prompt_ids=(9,), response_ids=((4,), (5,))),
    ]
    table = table_of(rows)
    assert table.grouped and table.arrays.ids.tolist() == [7, 8, 1, 2, 3, 9, 4, 5]
    assert table.arrays.ends.tolist() == [0, 2, 3, 5, 6, 7, 8]
    assert table.arrays.rows.tolist() == [0, 3, 6]
    assert (table.arrays.values.tolist(), table.arrays.value_ends.tolist()) == ([0.5, 0.0], [0, 2, 2])
    assert TokenRows(table).lengths.tolist() == [5, 3]


def test_ids_are_views_of_four_bytes_each() -> None:
    row = TokenRows(table_of([Rendered(ids=(1, 2), weights=(0.0, 1.0))]))[0]
    assert isinstance(row, Rendered) and isinstance(row.ids, np.ndarray) and isinstance(row.weights, np.ndarray)
    assert (row.ids.dtype, row.weights.dtype) == (np.int32, np.float32)
    assert row.ids.base is not None


def test_rows_are_a_sequence() -> None:
    rows = TokenRows(table_of([Rendered(ids=(n,), weights=(1.0,)) for n in range(4)]))
    assert plain(rows[-1]) == plain(rows[3])
    assert [plain(row) for row in rows[1:3]] == [plain(rows[1]), plain(rows[2])]
    assert len(rows) == 4 and rows[4:] == []
    for index in (4, -5):
        with pytest.raises(IndexError):
            rows[index]


def test_the_digest_is_of_the_ids_and_how_they_are_divided() -> None:
    def digest(*rows: Row) -> str:
        return TokenRows(table_of(rows)).digest

    one = RenderedGroup(prompt_ids=(1, 2), response_ids=((3,), (4,)))
    shifted = RenderedGroup(prompt_ids=(1,), response_ids=((2, 3), (4,)))
    elsewhere = RenderedGroup(prompt_ids=(1, 2), response_ids=((3,), (4,)), origin=Origin(file="b", line=2))
    assert digest(one) == digest(elsewhere)
    assert len({digest(one), digest(shifted), digest(one, one), digest()}) == 4


def test_digest_is_of_what_the_pictures_show() -> None:
    """An edited picture is another row; the same one under another name is not."""
    cat = Picture(source="cat.png", digest="0f" * 32, num_tokens=2)
    row = Rendered(ids=(1, 9, 9, 2), weights=(0.0, 0.0, 0.0, 1.0), pictures=(cat,))

    def digest(*rows: Row) -> str:
        return TokenRows(table_of(rows)).digest

    assert digest(row) == digest(replace(row, pictures=(replace(cat, source="copy.png"),)))
    edited = replace(row, pictures=(replace(cat, digest="a1" * 32),))
    text = replace(row, pictures=())
    assert len({digest(row), digest(edited), digest(text), digest(row, text), digest(text, row)}) == 5
