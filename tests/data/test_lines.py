"""Lines of many rows: exact, and small."""

from __future__ import annotations

import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data.ledger import Ledger
from whet.data.lines import Lines, ranges
from whet.schema.records import Origin

PLACES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), max_size=20)


def origins(places: list[tuple[str, int]]) -> list[Origin]:
    return [Origin(file=file, line=line) for file, line in places]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(parts=st.lists(PLACES, max_size=4))
def test_parts_add_up(parts: list[list[tuple[str, int]]]) -> None:
    whole = Lines()
    for part in parts:
        whole.merge(pickle.loads(pickle.dumps(Lines.of(origins(part)))))
    places = [place for part in parts for place in part]
    by_file = {file: {line for name, line in places if name == file} for file, _ in places}
    assert whole.to_json() == {
        "count": len(places), "lines": {file: ranges(sorted(lines)) for file, lines in by_file.items()}
    }  # fmt: skip


def test_a_million_bad_rows_are_a_few_bytes() -> None:
    ledger = Ledger()
    for line in range(1, 100_001):
        ledger.refuse("output is empty", Origin(file="a.jsonl", line=line), f"a.jsonl:{line}: output: is empty")
    assert len(pickle.dumps(ledger)) < 1000
    found = ledger.to_json()["dropped"]["output is empty"]
    assert (found["count"], found["lines"]) == (100_000, {"a.jsonl": "1-100000"})
    assert found["example"] == "a.jsonl:1: output: is empty" and ledger.read == 100_000


def test_every_second_row_costs_two_numbers() -> None:
    lines = Lines.of(Origin(file="a", line=line) for line in range(1, 20_000, 2))
    assert len(pickle.dumps(lines)) < 17 * 10_000
    assert [origin.line for origin in lines][:3] == [1, 3, 5] and len(lines) == 10_000
    assert lines.to_json()["lines"]["a"].startswith("1,3,5,7,9,")
