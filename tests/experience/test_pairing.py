"""Right answers of one file meet wrong ones of another where the prompt is the same, in whatever order they stand."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from whet.cli import main
from whet.config.data import Data
from whet.data.sources import read_records
from whet.errors import DataError
from whet.experience.pairing import Paired
from whet.experience.pairing import pair as join
from whet.schema.records import Preference


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(chosen: str, rejected: str, out: Path, *, num: int = 1) -> Paired:
    return join(Data(files=(chosen,)), Data(files=(rejected,)), out, num=num)


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
    account = found.to_json()
    assert (account["chosen"]["read"], account["chosen"]["kept"], account["rejected"]["read"]) == (3, 2, 5)
    assert {why: where["lines"] for why, where in account["rejected"]["dropped"].items()} == {
        "says what a right answer says": {rejected: "4"}, "no right answer took it": {rejected: "1-2"},
    }  # fmt: skip
    assert account["chosen"]["dropped"] == {"no wrong answer for it": {"count": 1, "lines": {chosen: "3"}}}
    assert records[0].columns == {"key": "1", "chosen_origin": f"{chosen}:1", "rejected_origin": f"{rejected}:5"}


def test_a_right_answer_beyond_the_pairs_of_its_prompt_is_called_so(in_tmp: Path) -> None:
    chosen = write(in_tmp / "a.jsonl", [right("1", "yes"), right("1", "aye"), right("2", "alone")])
    rejected = write(in_tmp / "b.jsonl", [wrong("1", "no"), wrong("1", "nay")])
    found = pair(chosen, rejected, in_tmp / "pairs.jsonl").to_json()
    assert (found["pairs"], found["chosen_alone"], found["rejected_alone"]) == (1, 2, 1)
    assert {why: where["lines"] for why, where in found["chosen"]["dropped"].items()} == {
        "its prompt has all the pairs it may have": {chosen: "2"}, "no wrong answer for it": {chosen: "3"},
    }  # fmt: skip


def test_without_keys_prompts_are_compared(in_tmp: Path) -> None:
    def without(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name != "key"}

    chosen = write(in_tmp / "a.jsonl", [without(right("", "yes", prompt)) for prompt in ("p", "q", "p")])
    rejected = write(in_tmp / "b.jsonl", [without(wrong("", "no", prompt)) for prompt in ("q", "p", "p", "r")])
    assert pair(chosen, rejected, in_tmp / "one.jsonl").pairs == 2
    assert pair(chosen, rejected, in_tmp / "two.jsonl", num=2).pairs == 3


def asked(answer: str, *prompt: str, **more: Any) -> dict[str, Any]:
    """A conversation of these turns, without a key."""
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, prompt, strict=False)]
    return {"messages": [*turns, {"role": "assistant", "content": answer, **more}]}


def test_without_keys_all_turns_before_the_answer_are_compared(in_tmp: Path) -> None:
    chosen = write(in_tmp / "a.jsonl", [asked("4", "hi", "hello", "2 + 2?"), asked("6", "hi", "hello", "3 + 3?")])
    taught = asked("7", "hi", "hello", "3 + 3?")
    rated = {"prompt": taught["messages"][:-1], "completion": "7", "label": False}
    for number, rows in enumerate([[asked("9", "hi", "hello", "4 + 5?"), taught], [rated]]):
        found = pair(chosen, write(in_tmp / "b.jsonl", rows), in_tmp / f"{number}.jsonl")
        assert found.pairs == 1
        (record,), _ = read_records(Data(files=(f"{number}.jsonl",)), ("preference",))
        assert isinstance(record, Preference) and (record.chosen[0].text, record.rejected[0].text) == ("6", "7")


def test_a_rating_is_on_the_side_its_label_says(in_tmp: Path) -> None:
    rated = [wrong("1", "bad"), wrong("1", "good") | {"label": True}, wrong("1", "worse")]
    both = write(in_tmp / "a.jsonl", rated)
    found = pair(both, both, in_tmp / "pairs.jsonl", num=2)
    (record,), _ = read_records(Data(files=("pairs.jsonl",)), ("preference",))
    assert isinstance(record, Preference) and (record.chosen[0].text, record.rejected[0].text) == ("good", "bad")
    assert (found.other_label, found.rejected_alone) == (3, 1) and "3 are labelled the opposite" in found.describe()
    assert found.to_json()["chosen"]["dropped"]["its label says the opposite"]["lines"] == {both: "1,3"}


def test_what_any_right_answer_says_is_not_wrong(in_tmp: Path) -> None:
    chosen = write(in_tmp / "a.jsonl", [right("1", "abc"), right("1", "xyz")])
    rejected = write(in_tmp / "b.jsonl", [wrong("1", "xyz"), wrong("1", "a long one")])
    found = pair(chosen, rejected, in_tmp / "pairs.jsonl")
    (record,), _ = read_records(Data(files=("pairs.jsonl",)), ("preference",))
    assert isinstance(record, Preference) and record.rejected[0].text == "a long one" and found.same_text == 1


def test_calls_of_tools_are_what_an_answer_says(in_tmp: Path) -> None:
    def calling(number: int) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": {"x": number}}}
        return asked("", "Call it.", tool_calls=[call])

    chosen = write(in_tmp / "a.jsonl", [calling(1)])
    found = pair(chosen, write(in_tmp / "b.jsonl", [calling(1), calling(2)]), in_tmp / "pairs.jsonl")
    assert (found.pairs, found.same_text, found.rejected_alone) == (1, 1, 0)


def test_keys_of_any_type(in_tmp: Path) -> None:
    """A 0 is a key, an empty cell is none, and a date can be written."""
    keys = [0, 1, "", None, float("nan")]
    rows = [asked("yes", f"p{number}") | {"key": key} for number, key in enumerate(keys)]
    others = [asked("no", f"p{number}" if number > 1 else "?") | {"key": key} for number, key in enumerate(keys)]
    chosen, rejected = write(in_tmp / "a.jsonl", rows), write(in_tmp / "b.jsonl", others[::-1])
    assert pair(chosen, rejected, in_tmp / "pairs.jsonl").pairs == 5
    records, _ = read_records(Data(files=("pairs.jsonl",)), ("preference",))
    assert [record.columns["rejected_origin"] for record in records] == [f"{rejected}:{5 - n}" for n in range(5)]
    for name in ("c", "d"):
        cells = {"prompt": ["p"], "completion": [name], "label": [name == "c"], "key": [date(2024, 1, 1)]}
        pyarrow.parquet.write_table(pyarrow.table(cells), f"{name}.parquet")
    assert pair("c.parquet", "d.parquet", in_tmp / "dated.jsonl").pairs == 1
    assert json.loads((in_tmp / "dated.jsonl").read_text())["key"] == "2024-01-01"


def test_mistakes_are_said(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen, rejected = write(in_tmp / "a.jsonl", [right("1", "yes")]), write(in_tmp / "b.jsonl", [wrong("2", "no")])
    with pytest.raises(DataError, match="no prompt has a right answer here and a wrong one in"):
        pair(chosen, rejected, in_tmp / "pairs.jsonl")
    assert not (in_tmp / "pairs.jsonl").exists()
    (in_tmp / "link.jsonl").symlink_to("nowhere")
    for there in (chosen, "link.jsonl"):
        with pytest.raises(DataError, match="exists already"):
            pair(chosen, rejected, Path(there))
    with pytest.raises(SystemExit) as ended:
        main(["data", "pair", chosen, rejected])
    assert ended.value.code == 2 and "where to?" in capsys.readouterr().err


def test_inner_join_and_union_of_two_models(in_tmp: Path) -> None:
    """Item 1: the first model wrong, the second right. Item 2: the other way round. Item 3: nothing right."""
    first_right = write(in_tmp / "a.jsonl", [right("2", "yes")])
    first_wrong = write(in_tmp / "b.jsonl", [wrong("1", "no")])
    second_right = write(in_tmp / "c.jsonl", [right("1", "yes")])
    second_wrong = write(in_tmp / "d.jsonl", [wrong("2", "no"), wrong("3", "no")])
    inner = pair(second_right, first_wrong, in_tmp / "inner.jsonl")
    assert (inner.pairs, inner.prompts, inner.rejected_alone) == (1, 1, 0)
    chosen, rejected = Data(files=(second_right, first_right)), Data(files=(first_wrong, second_wrong))
    both = join(chosen, rejected, in_tmp / "union.jsonl")
    assert (both.pairs, both.prompts, both.rejected_alone) == (2, 2, 1)


def test_the_same_caption_with_other_pictures_is_another_item(in_tmp: Path) -> None:
    def about(row: dict[str, Any], *images: str) -> dict[str, Any]:
        for name in images:
            (in_tmp / name).write_bytes(name.encode())
        kept = {name: value for name, value in row.items() if name != "key"}
        return kept | {"images": list(images)}

    asked = "<image><image>which?"
    chosen = write(in_tmp / "a.jsonl", [about(right("", "yes", asked), "1.png", "2.png")])
    rows = [about(wrong("", "other", asked), "1.png", "3.png"), about(wrong("", "swapped", asked), "2.png", "1.png"),
            about(wrong("", "same", asked), "1.png", "2.png")]  # fmt: skip
    assert pair(chosen, write(in_tmp / "b.jsonl", rows), in_tmp / "pairs.jsonl").rejected_alone == 2
    (record,), _ = read_records(Data(files=("pairs.jsonl",)), ("preference",))
    assert isinstance(record, Preference) and record.rejected[0].text == "same"
    assert [part.type for part in record.prompt[0].content if not isinstance(part, str)] == ["image", "image", "text"]
