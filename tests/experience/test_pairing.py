"""Right answers of one file meet wrong ones of another where the prompt is the same, in whatever order they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whet.cli import main
from whet.config.data import Data
from whet.data.sources import read_records
from whet.errors import DataError
from whet.experience.pairing import pair
from whet.schema.records import Preference


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def right(key: str, answer: str, prompt: str = "?") -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], "key": key,
        "answer_score": 1.0,
    }  # fmt: skip


def wrong(key: str, answer: str, prompt: str = "?") -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "label": False, "key": key, "answer_score": 0.0}


def test_pairs_of_two_files(in_tmp: Path) -> None:
    chosen = write(in_tmp / "a.jsonl", [right("1", "yes"), right("2", "a long answer"), right("3", "alone")])
    rows = [wrong("4", "alone"), wrong("2", "no"), wrong("2", "a long story"), wrong("1", "yes "), wrong("1", "no")]
    rejected = write(in_tmp / "b.jsonl", rows)
    found = pair(chosen, rejected, in_tmp / "pairs.jsonl")
    assert (found.pairs, found.prompts, found.chosen_alone, found.rejected_alone, found.same_text) == (2, 2, 1, 2, 1)
    records, _ = read_records(Data(files=("pairs.jsonl",)), ("preference",))
    texts = [(r.chosen[0].text, r.rejected[0].text) for r in records if isinstance(r, Preference)]
    assert texts == [("yes", "no"), ("a long answer", "a long story")]
    assert records[0].columns == {"key": "1", "chosen_origin": f"{chosen}:1", "rejected_origin": f"{rejected}:5"}


def test_without_keys_prompts_are_compared(in_tmp: Path) -> None:
    def without(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name != "key"}

    chosen = write(in_tmp / "a.jsonl", [without(right("", "yes", prompt)) for prompt in ("p", "q", "p")])
    rejected = write(in_tmp / "b.jsonl", [without(wrong("", "no", prompt)) for prompt in ("q", "p", "p", "r")])
    assert pair(chosen, rejected, in_tmp / "one.jsonl").pairs == 2
    assert pair(chosen, rejected, in_tmp / "two.jsonl", num=2).pairs == 3


def test_mistakes_are_said(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen, rejected = write(in_tmp / "a.jsonl", [right("1", "yes")]), write(in_tmp / "b.jsonl", [wrong("2", "no")])
    with pytest.raises(DataError, match="no prompt is in both files"):
        pair(chosen, rejected, in_tmp / "pairs.jsonl")
    assert not (in_tmp / "pairs.jsonl").exists()
    with pytest.raises(DataError, match="exists already"):
        pair(chosen, rejected, Path(chosen))
    with pytest.raises(SystemExit) as ended:
        main(["data", "pair", chosen, rejected])
    assert ended.value.code == 2 and "where to?" in capsys.readouterr().err
