"""What is drawn of a mixture, by counts alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from whet.config.data import Data, Source
from whet.data import blocks, spread
from whet.data.draw import KEPT, LEFT_OUT, NOT_DRAWN, draws, fates
from whet.data.ledger import Ledger
from whet.data.locate import Place
from whet.data.sources import read_records
from whet.data.tokenise import Job


def place(name: str, weight: float = 1.0, num_samples: int | None = None) -> Place:
    return Place(name=name, path=None, format="auto", weight=weight, num_samples=num_samples)


def counted(found: list[np.ndarray]) -> list[list[int]]:
    return [[int((fate == reason).sum()) for reason in (KEPT, NOT_DRAWN, LEFT_OUT)] for fate in found]


def test_samples_of_each_then_weights_then_samples_of_all() -> None:
    places = [place("a", 2.0), place("b", 1.0, num_samples=30)]
    assert counted(fates([100, 50], places, Data())) == [[60, 0, 40], [30, 20, 0]]
    assert counted(fates([100, 50], places, Data(num_samples=45)))[0][2] == 40
    found = fates([100, 50], places, Data(num_samples=45))
    assert sum(kept for kept, _, _ in counted(found)) == 45
    again, other = (fates([100, 50], places, Data(num_samples=45, seed=seed)) for seed in (42, 1))
    assert all(map(np.array_equal, found, again)) and not all(map(np.array_equal, found, other))


def test_everything_is_used_where_nothing_is_asked_for() -> None:
    assert not draws([place("a", 2.0), place("b", 2.0)], Data())
    assert draws([place("a", 2.0), place("b")], Data()) and draws([place("a")], Data(num_samples=1))
    few = [place("a", num_samples=9), place("b")]
    assert counted(fates([5, 0], few, Data(num_samples=9))) == [[5, 0, 0], [0, 0, 0]]
    assert counted(fates([5, 0], [place("a", 2.0), place("b")], Data())) == [[0, 0, 5], [0, 0, 0]]


def test_blocks_give_the_records_that_are_drawn_from_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    from whet.data.tokens import load_renderer

    for name, num in (("a", 60), ("b", 90)):
        rows = [{"prompt": f"{name} {n}", "completion": "" if n == 7 else f"{n}"} for n in range(num)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = (Source(path=str(tmp_path / "a.jsonl"), weight=3), Source(path=str(tmp_path / "b.jsonl"), num_samples=40))
    data = Data(files=files, num_samples=50, on_bad_row="drop")
    records, ledger = read_records(data, ("conversation",))
    assert len(records) == 50
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 300)
    monkeypatch.setattr(spread, "num_processes", lambda: 1)
    job = Job(data=data, kinds=("conversation",), renderer=load_renderer(str(tiny_checkpoint), None), folders={})
    account = Ledger()
    parts = list(job._parts(data.files, account, splits=False))
    assert len(parts) > 15 and account.to_json() == ledger.to_json()
    lines = [int(line) for part in parts for line in part.table.arrays.lines]
    assert lines == [record.origin.line for record in records]
