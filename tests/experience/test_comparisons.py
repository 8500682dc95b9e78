"""Preferences become questions with a verdict: no item on two sides, both orders where it is measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.cli import main
from whet.config.data import Data
from whet.data.row import Row
from whet.data.sources import read_records
from whet.errors import ConfigError, DataError
from whet.experience.candidates import read_item
from whet.experience.comparisons import FILES, Splitting, compare, filled
from whet.schema.records import NOWHERE, Part, Prompt

RIGHT = "<think>b has both stars</think><answer>Image 2 is better</answer>"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def pictured(number: int, **more: Any) -> dict[str, Any]:
    return {"caption": f"{number} stars", "images": [f"{number}a.png", f"{number}b.png"], "better": 2} | more


def test_items_fall_on_one_side_each(in_tmp: Path) -> None:
    rows = [pictured(n, **({"reasoning": RIGHT} if n % 2 else {})) for n in range(200)]
    found = compare([write(in_tmp / "raw/p.jsonl", rows)], in_tmp / "out", Splitting(held_out=0.2))
    files = {name: rows_in(in_tmp / "out" / name) for name in FILES}
    names = {name: {row["item"] for row in of_file} for name, of_file in files.items()}
    assert sum(map(len, names.values())) == 200
    assert names["cold_start.jsonl"].isdisjoint(names["held_out.jsonl"] | names["prompts.jsonl"])
    assert names["prompts.jsonl"].isdisjoint(names["held_out.jsonl"])
    assert 20 <= len(names["held_out.jsonl"]) <= 60
    assert found.rows == {name: len(of_file) for name, of_file in files.items()}
    assert found.ledger.kept == found.ledger.read == 200


def test_held_out_items_are_asked_in_both_orders(in_tmp: Path) -> None:
    compare([write(in_tmp / "raw/p.jsonl", [pictured(1), pictured(2)])], in_tmp / "out", Splitting(held_out=1))
    rows = rows_in(in_tmp / "out/held_out.jsonl")
    assert [(row["images"], row["reference"]) for row in rows[:2]] == [
        (["../raw/1a.png", "../raw/1b.png"], "Image 2 is better"),
        (["../raw/1b.png", "../raw/1a.png"], "Image 1 is better"),
    ]
    assert rows[0]["item"] == rows[1]["item"] != rows[2]["item"]
    assert "judgement" not in rows[0]


def test_the_order_of_prompts_is_drawn(in_tmp: Path) -> None:
    compare([write(in_tmp / "p.jsonl", [pictured(n) for n in range(200)])], in_tmp / "out", Splitting(held_out=0))
    truths = Counter(row["reference"] for row in rows_in(in_tmp / "out/prompts.jsonl"))
    assert 70 < truths["Image 1 is better"] < 130
    for row in rows_in(in_tmp / "out/prompts.jsonl"):
        assert row["images"][int(row["reference"][6]) - 1].endswith("b.png")


def test_a_row_is_the_same_item_whatever_its_order(in_tmp: Path) -> None:
    swapped = {"caption": "1 stars", "images": ["1b.png", "1a.png"], "better": 1}
    tie = pictured(2, better="tie")
    found = compare([write(in_tmp / "p.jsonl", [pictured(1), swapped, tie])], in_tmp / "out", Splitting(held_out=0))
    reasons = {reason: len(places) for reason, places in found.ledger.dropped.items()}
    assert reasons == {"same item again": 1, "tie": 1}
    kept = compare([str(in_tmp / "p.jsonl")], in_tmp / "ties", Splitting(held_out=0, ties="keep"))
    assert kept.rows["prompts.jsonl"] == 2
    assert rows_in(in_tmp / "ties/prompts.jsonl")[1]["reference"] == "Image 1 and Image 2 are equally good"


def test_a_judgement_against_its_row_is_left_out(in_tmp: Path) -> None:
    good, bad = pictured(1, reasoning=RIGHT), pictured(2, reasoning=RIGHT.replace("2 is", "1 is"))
    found = compare([write(in_tmp / "p.jsonl", [good, bad])], in_tmp / "out", Splitting(held_out=0))
    (taught,) = rows_in(in_tmp / "out/cold_start.jsonl")
    assert taught["messages"][1] == {"role": "assistant", "content": RIGHT}
    assert taught["images"] == ["../1a.png", "../1b.png"], "a judgement speaks of the order it was given"
    assert found.contradicted == 1 and found.rows["prompts.jsonl"] == 1
    assert "1 judgements contradict" in found.describe()


def test_answers_about_pictures(in_tmp: Path) -> None:
    row = {"question": "What is this?", "images": ["cat.png"], "answers": ["A cat.", "A {first} dog."], "better": 1}
    compare([write(in_tmp / "p.jsonl", [row])], in_tmp / "out", Splitting(held_out=1))
    first, second = rows_in(in_tmp / "out/held_out.jsonl")
    text = first["messages"][0]["content"]
    assert "<image>\nQuestion: What is this?\nAnswer 1: A cat.\nAnswer 2: A {first} dog." in text
    assert (first["reference"], second["reference"]) == ("Answer 1 is better", "Answer 2 is better")


def test_the_rows_are_prompts_with_their_pictures(in_tmp: Path) -> None:
    compare([write(in_tmp / "p.jsonl", [pictured(1)])], in_tmp / "out", Splitting(held_out=0))
    (prompt,), _ = read_records(Data(files=("out/prompts.jsonl",)), ("prompt",))
    assert isinstance(prompt, Prompt) and prompt.reference is not None
    content = prompt.messages[0].content
    assert not isinstance(content, str)
    assert sum(part.type == "image" for part in content) == 2 and content[0] != Part("text", "")


def test_a_template_of_ones_own(in_tmp: Path) -> None:
    template = in_tmp / "t.txt"
    template.write_text("{first} or {second} for {question}?\n")
    splitting = Splitting(held_out=0, template=str(template))
    compare([write(in_tmp / "p.jsonl", [pictured(1)])], in_tmp / "out", splitting)
    (row,) = rows_in(in_tmp / "out/prompts.jsonl")
    assert row["messages"][0]["content"] == "<image> or <image> for 1 stars?"
    template.write_text("{first} or {second}?")
    with pytest.raises(ConfigError, match=r"must have \{question\} once"):
        compare([str(in_tmp / "p.jsonl")], in_tmp / "other", splitting)


@given(parts=st.dictionaries(st.sampled_from(["{question}", "{first}", "{second}"]), st.text(), min_size=3))
def test_what_is_filled_in_is_never_a_place(parts: dict[str, str]) -> None:
    text = filled("<{question}|{first}|{second}>", parts)
    assert text == f"<{parts['{question}']}|{parts['{first}']}|{parts['{second}']}>"


@pytest.mark.parametrize(("value", "better"), [(1, 1), ("2", 2), (0, 0), ("tie", 0), ("Image 2 is better", 2)])
def test_ways_to_say_which_is_better(value: object, better: int) -> None:
    assert read_item(Row(pictured(1, better=value), NOWHERE)).better == better


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pictured(1, better=3), "does not say which is better"),
        (pictured(1, better=True), "does not say which is better"),
        (pictured(1, better="Answer 1 is better"), "does not say which is better"),
        (pictured(1, images=["a.png"]), "1 candidates, where two are compared"),
        (pictured(1, images=["a.png", "a.png"]), "cannot be better than itself"),
        (pictured(1, images=[1, 2]), "is no list of paths"),
        ({"images": ["a", "b"], "better": 1}, "is missing"),
        ({"caption": "c", "images": ["a", "b"]}, "is missing"),
    ],
)
def test_rows_that_are_no_items(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_item(Row(row, NOWHERE))


def test_chosen_and_rejected_are_two_answers() -> None:
    item = read_item(Row({"prompt": "p", "chosen": "yes", "rejected": "no"}, NOWHERE))
    assert (item.candidates, item.better, item.swapped().better) == (("yes", "no"), 1, 2)
    assert item.name == item.swapped().name


def test_the_command(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["data", "compare", file, *words])
        return int(ended.value.code or 0)

    file = write(in_tmp / "p.jsonl", [pictured(1), pictured(2)])
    assert run("--out", "out", "--held-out", "0") == 0
    assert "2 read, 2 kept; 0 in cold_start.jsonl, 2 in prompts.jsonl, 0 in held_out.jsonl" in capsys.readouterr().out
    assert run("--out", "out") == 2
    assert "exists already" in capsys.readouterr().err
    assert (run("--out", "other", "--ties", "maybe"), run()) == (2, 2)
