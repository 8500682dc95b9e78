"""Preferences become questions with a verdict: no item on two sides, both orders where it is measured."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.cli import main
from whet.config.data import Data
from whet.data.places import pictures_of
from whet.data.row import Row
from whet.data.sources import read_records
from whet.errors import ConfigError, DataError
from whet.experience.candidates import read_item
from whet.experience.comparisons import FILES, Splitting, compare, filled
from whet.schema.records import NOWHERE, Part, Prompt

RIGHT = "<think>b has both stars</think><answer>Image 2 is better</answer>"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """A file of rows, and a file for every picture in them, all different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in (name for row in rows for name in row.get("images", []) if not name.startswith("data:")):
        if not (path.parent / name).exists():
            (path.parent / name).write_bytes(name.encode())
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


def test_prompts_may_be_asked_in_both_orders(in_tmp: Path) -> None:
    file = write(in_tmp / "p.jsonl", [pictured(n) for n in range(20)])
    compare([file], in_tmp / "one", Splitting(held_out=0))
    compare([file], in_tmp / "both", Splitting(held_out=0, orders="both"))
    one, both = (rows_in(in_tmp / name / "prompts.jsonl") for name in ("one", "both"))
    assert both[::2] == one, "the order that is drawn comes first"
    assert [row["item"] for row in both[1::2]] == [row["item"] for row in one]
    assert all(row["images"] == other["images"][::-1] for row, other in zip(both[::2], both[1::2], strict=True))
    assert Counter(row["reference"] for row in both) == {"Image 1 is better": 20, "Image 2 is better": 20}


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
    assert [place.line for place in found.contradicted] == [2] and found.rows["prompts.jsonl"] == 1
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
    template.write_bytes(b"\xff{question} {first} {second}")
    with pytest.raises(ConfigError, match="--template: is not UTF-8 text"):
        compare([str(in_tmp / "p.jsonl")], in_tmp / "other", splitting)


def test_columns_whose_name_is_taken_go_along(in_tmp: Path) -> None:
    row = {"question": "?", "answers": ["a", "b"], "better": 1, "item": 7, "reference": "mine", "source": "s"}
    compare([write(in_tmp / "p.jsonl", [row])], in_tmp / "out", Splitting(held_out=0))
    (written,) = rows_in(in_tmp / "out/prompts.jsonl")
    assert (written["original_item"], written["original_reference"], written["source"]) == (7, "mine", "s")
    assert written["reference"].endswith("is better") and written["item"] != 7


def test_names_the_system_refuses(in_tmp: Path) -> None:
    file = write(in_tmp / "p.jsonl", [pictured(1)])
    with pytest.raises(DataError, match=r"cannot write \(found File name too long"):
        compare([file], in_tmp / ("x" * 300), Splitting())
    with pytest.raises(DataError, match=r"cannot be reached \(found File name too long"):
        compare(["x" * 300], in_tmp / "out", Splitting())


def test_a_picture_is_its_bytes_whatever_its_name(in_tmp: Path) -> None:
    for name, content in (("a/copy.png", b"1b.png"), ("b/1a.png", b"x"), ("b/1b.png", b"y")):
        (in_tmp / name).parent.mkdir(exist_ok=True)
        (in_tmp / name).write_bytes(content)
    copied = pictured(1, images=["./1a.png", "copy.png"])
    embedded = pictured(1, images=[data_url(b"1b.png"), "1a.png"], better=1)
    same = write(in_tmp / "a/p.jsonl", [pictured(1), copied, embedded])
    found = compare([same, write(in_tmp / "b/p.jsonl", [pictured(1)])], in_tmp / "out", Splitting(held_out=0))
    assert {why: [place.line for place in places] for why, places in found.ledger.dropped.items()} == {
        "same item again": [2, 3]
    }
    assert len({row["item"] for row in rows_in(in_tmp / "out/prompts.jsonl")}) == 2, "other pictures, another item"
    with pytest.raises(DataError, match="better than itself"):
        compare([write(in_tmp / "a/q.jsonl", [pictured(1, images=["copy.png", data_url(b"1b.png")])])],
                in_tmp / "none", Splitting())  # fmt: skip


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + b64encode(content).decode()


def test_pictures_are_found_as_a_plan_finds_them(in_tmp: Path) -> None:
    """In the working directory too, or in a folder of theirs, or in the row; and a plan finds those written."""
    pictured_row = {"caption": "c", "images": ["here.png", data_url(b"PNG")], "better": 1}
    asked = {"question": "q", "image": "here.png", "answers": ["x", "y"], "better": 1}
    for folder in (in_tmp, in_tmp / "pictures"):
        folder.mkdir(exist_ok=True)
        (folder / "here.png").write_bytes(str(folder).encode())
    (in_tmp / "raw").mkdir()
    (in_tmp / "raw/p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (pictured_row, asked)))
    for out, start in (("out", None), ("other", "pictures")):
        compare(["raw/p.jsonl"], in_tmp / out, Splitting(held_out=0, image_folder=start))
        records, _ = read_records(Data(files=(f"{out}/prompts.jsonl",)), ("prompt",))
        sources = [source for record in records for source in pictures_of(record)]
        contents = {Path(source).read_bytes() for source in sources}
        assert len(sources) == 3 and contents == {b"PNG", str(in_tmp / (start or "")).encode()}
        assert all(Path(source).is_relative_to(in_tmp) for source in sources), "nothing lies in this machine's cache"
    (in_tmp / "here.png").unlink()
    with pytest.raises(DataError, match=r"raw/p.jsonl:1: images: the picture is missing .*here.png.*--image-folder"):
        compare(["raw/p.jsonl"], in_tmp / "third", Splitting())
    assert not (in_tmp / "third").exists()


def test_pictures_inside_rows_are_put_beside(in_tmp: Path) -> None:
    inside = {"bytes": b"\x89PNG 1", "path": None}
    row = {"question": "q", "images": [inside], "answers": ["x", "y"], "better": 1}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), in_tmp / "p.parquet")
    bare = {"caption": "c", "images": [b64encode(b"\x89PNG" + bytes([n] * 40)).decode() for n in (1, 2)], "better": 1}
    (in_tmp / "p.jsonl").write_text(json.dumps(bare) + "\n")
    compare(["p.parquet", "p.jsonl"], in_tmp / "out", Splitting(held_out=0))
    named = [name for row in rows_in(in_tmp / "out/prompts.jsonl") for name in row["images"]]
    assert len(named) == 3 and all(name.startswith("compare_pictures/") for name in named)
    assert (in_tmp / "out" / named[0]).read_bytes() == b"\x89PNG 1"


def test_a_date_beside_an_item_becomes_text(in_tmp: Path) -> None:
    row = {"question": "q", "answers": ["x", "y"], "better": 1, "day": date(2024, 2, 29)}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), in_tmp / "p.parquet")
    compare(["p.parquet"], in_tmp / "out", Splitting(held_out=0))
    assert [row["day"] for row in rows_in(in_tmp / "out/prompts.jsonl")] == ["2024-02-29"]


def test_marks_in_the_question_say_where_its_pictures_go(in_tmp: Path) -> None:
    row = {"question": "Is <image> a cat?", "images": ["cat.png"], "answers": ["Yes.", "No."], "better": 1}
    plain = {"question": "What does <image> mean?", "answers": ["A tag.", "<image>"], "better": 1}
    compare([write(in_tmp / "p.jsonl", [row, plain])], in_tmp / "out", Splitting(held_out=0))
    first, second = rows_in(in_tmp / "out/prompts.jsonl")
    text = first["messages"][0]["content"]
    assert text.count("<image>") == 1 and "Question: Is <image> a cat?" in text
    assert "images" not in second, "without pictures a mark is what somebody wrote"
    assert len(read_records(Data(files=("out/prompts.jsonl",)), ("prompt",))[0]) == 2


def test_a_template_may_place_the_pictures_of_a_question(in_tmp: Path) -> None:
    (in_tmp / "t.txt").write_text("See <image>. {question} {first} or {second}")
    row = {"question": "q", "images": ["cat.png"], "answers": ["Yes.", "No."], "better": 1}
    splitting = Splitting(held_out=1, template="t.txt")
    compare([write(in_tmp / "p.jsonl", [row])], in_tmp / "out", splitting)
    assert rows_in(in_tmp / "out/held_out.jsonl")[0]["messages"][0]["content"] == "See <image>. q Yes. or No."
    for wrong in (pictured(1), {**row, "question": "<image> q"}):
        with pytest.raises(DataError, match=r"q.jsonl:1: --template: \d <image> marks for \d pictures"):
            compare([write(in_tmp / "q.jsonl", [wrong])], in_tmp / "other", splitting)


def test_what_became_of_every_row_is_written(in_tmp: Path) -> None:
    against, swapped = pictured(1, better=1), pictured(1, images=["1b.png", "1a.png"], better=1)
    bad = pictured(2, reasoning=RIGHT.replace("2 is", "1 is"))
    rows = [pictured(1), against, swapped, bad, pictured(3, better="tie")]
    found = compare([write(in_tmp / "p.jsonl", rows)], in_tmp / "out", Splitting(held_out=0))
    account, file = json.loads((in_tmp / "out/compare.json").read_text()), str(in_tmp / "p.jsonl")
    assert {why: where["lines"] for why, where in account["dropped"].items()} == {
        "contradicts an earlier row": {file: "2"}, "same item again": {file: "3"}, "tie": {file: "5"},
    }  # fmt: skip
    assert account["contradicted"] == {"count": 1, "lines": {file: "4"}}
    assert (account["read"], account["kept"], account["rows"]) == (5, 2, found.rows)


@given(parts=st.dictionaries(st.sampled_from(["{question}", "{first}", "{second}"]), st.text(), min_size=3))
def test_what_is_filled_in_is_never_a_place(parts: dict[str, str]) -> None:
    text = filled("<{question}|{first}|{second}>", parts)
    assert text == f"<{parts['{question}']}|{parts['{first}']}|{parts['{second}']}>"


@pytest.mark.parametrize(("value", "better"), [(1, 1), ("2", 2), ("tie", 0), ("Image 2 is better", 2)])
def test_ways_to_say_which_is_better(value: object, better: int) -> None:
    assert read_item(Row(pictured(1, better=value), NOWHERE)).better == better


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pictured(1, better=3), "does not say which is better"),
        (pictured(1, better=0), "0 may be the first or a tie .* write 1 where the first is better"),
        (pictured(1, better="0"), "0 may be the first or a tie"),
        (pictured(1, better=True), "does not say which is better"),
        (pictured(1, better="Answer 1 is better"), "does not say which is better"),
        (pictured(1, images=["a.png"]), "1 candidates, where two are compared"),
        (pictured(1, images=["a.png", "a.png"]), "cannot be better than itself"),
        (pictured(1, images=[1, 2]), "is not the path of a picture"),
        (pictured(1, caption="<image> two"), "caption: 1 <image> marks, where 0 pictures belong"),
        (pictured(1, reasoning="<image> is fine"), "reasoning: 1 <image> marks"),
        ({"question": "<image> <image>", "images": ["a"], "answers": ["x", "y"], "better": 1}, "question: 2 <image>"),
        ({"question": "?", "images": ["a"], "answers": ["x", "<image>"], "better": 1}, "answers: 1 <image>"),
        ({"question": "<image>", "images": [], "answers": ["x", "y"], "better": 1}, "question: 1 <image>"),
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
    assert (run("--out", "other", "--ties", "maybe"), run("--out", "other", "--orders", "all"), run()) == (2, 2, 2)
    capsys.readouterr()
    assert run("--out", "other", "--held-out", "0", "--orders", "both") == 0
    assert "4 in prompts.jsonl" in capsys.readouterr().out
