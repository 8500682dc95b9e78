"""Pictures in rows, in every form that data sets have them: what a record names is a file that can be opened."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.drawn import bytes_of_drawing, draw, png_header
from whet.config.data import Data
from whet.data.convert import convert, writer_of
from whet.data.decode import BadPicture
from whet.data.doctor import check
from whet.data.hub import _raw, read_hub
from whet.data.ledger import Ledger
from whet.data.picture_check import with_sound_pictures
from whet.data.picture_files import bytes_of, signature, url_of
from whet.data.sources import read_records
from whet.data.thin import kept_places, thinned
from whet.errors import DataError
from whet.schema.records import Conversation, Message, Part, Preference, Prompt, Rating, Record, RecordKind

PNG = bytes_of_drawing()
ANSWER = {"role": "assistant", "content": "A cat."}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictures"


def write(path: Path, *rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str, kind: RecordKind = "conversation", **data: Any) -> list[Any]:
    return read_records(Data(files=(path,), **data), (kind,))[0]


def asked(text: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, ANSWER], **more}


def shown(record: Record) -> Any:
    turns = record.messages if isinstance(record, Conversation | Prompt) else record.prompt
    return turns[0].content


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/pics/a.png", "here.png", "other/pics/a.png"):
        draw(tmp_path / name)
    rows = [asked("<image>?", images=[name]) for name in ("pics/a.png", "here.png")]
    path = write(tmp_path / "data" / "a.jsonl", *rows)
    for name in (path, "data/a.jsonl", "data"):
        first, second = read(name)
        assert shown(first) == (Part("image", str(tmp_path / "data/pics/a.png")), Part("text", "?"))
        assert shown(second)[0].value == str(tmp_path / "here.png")  # the working directory comes last
    (first, second) = read(path, image_folder="other")
    assert shown(first)[0].value == str(tmp_path / "other/pics/a.png")
    assert shown(second)[0].value == str(tmp_path / "other/here.png")  # missing, and nothing else is tried
    with pytest.raises(DataError, match=r"data\.image_folder: no such folder"):
        read(path, image_folder="nowhere")


def test_pictures_inside_rows_are_unpacked_once(tmp_path: Path, cache: Path) -> None:
    url, bare = url_of(PNG), base64.b64encode(PNG).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url, "text": None},
        {"type": "input_image", "image_url": url},
        {"type": "image", "image": bare},
        {"type": "image", "url": url},
        {"type": "text", "text": "Which?"},
    ]
    rows = [asked(parts), asked("<image>?", images=[bare]), {"prompt": "Which?", "completion": "It.", "image": url}]
    found = {
        part.value
        for number, row in enumerate(rows)
        for part in shown(read(write(tmp_path / f"{number}.jsonl", row))[0])
        if part.type == "image"
    }
    (unpacked,) = cache.glob("*/*")
    assert found == {str(unpacked)} and unpacked.suffix == ".png" and unpacked.read_bytes() == PNG


def test_bytes_in_parquet(tmp_path: Path, cache: Path) -> None:
    other = draw(tmp_path / "b.png", seed=3)
    both = [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    rows = [
        {"problem": "Which fits?", "solution": "Image 1", "images": both},
        {"problem": "And here?", "solution": "Image 2", "images": [{"bytes": bytes_of_drawing(seed=1), "path": None}]},
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read(str(tmp_path / "a.parquet"), "prompt")
    assert first.reference == "Image 1" and "images" not in first.columns
    assert Path(shown(first)[0].value).read_bytes() == PNG and shown(first)[1].value == str(other)
    assert shown(first)[2] == Part("text", "Which fits?")  # a plain question without marks has its pictures in front
    assert Path(shown(second)[0].value).parent.parent == cache
    raw = pa.table({"prompt": ["<image>Which?"], "completion": ["This."], "image": [PNG]})
    pyarrow.parquet.write_table(raw, tmp_path / "raw.parquet")
    assert Path(shown(read(str(tmp_path / "raw.parquet"))[0])[0].value).read_bytes() == PNG


def test_without_a_cache_pictures_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "file"))
    (record,) = read(write(tmp_path / "a.jsonl", asked("<image>?", images=[base64.b64encode(PNG).decode()])))
    assert shown(record)[0].value == url_of(PNG)


def test_rows_of_unifiedreward(tmp_path: Path) -> None:
    draw(tmp_path / "1.png"), draw(tmp_path / "2.png")
    images = ["1.png", "2.png"]
    one, two = (str(tmp_path / name) for name in images)
    turns = [{"from": "human", "value": "<image>\n<image>\nWhich?"}, {"from": "gpt", "value": "<answer>1</answer>"}]
    (record,) = read(write(tmp_path / "c.jsonl", {"conversations": turns, "images": images}))
    expected = (Part("image", one), Part("text", "\n"), Part("image", two), Part("text", "\nWhich?"))
    assert shown(record) == expected
    pair = {"problem": "<image>\n<image>\nWhich?", "chosen": "One.", "rejected": "Two.", "images": images}
    (preference,) = read(write(tmp_path / "p.jsonl", pair), "preference")
    assert isinstance(preference, Preference) and shown(preference) == expected
    item = {"problem": "Which?", "solution": "Image 1", "images": images}
    (prompt,) = read(write(tmp_path / "g.jsonl", item), "prompt")
    assert prompt.reference == "Image 1"
    assert shown(prompt) == (Part("image", one), Part("image", two), Part("text", "Which?"))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "Which?", "responses": ["a", "b"], "rankings": [1, 2]}, "ranking"),
        ({"prompt": "Which?", "responses": ["a", "b"], "rewards": [1, 2]}, "scored"),
        ({"prompt": "Which?", "responses": ["a", "b"], "weights": [0.5, 0.5]}, "scored"),
        ({"instruction": "Which?", "completions": [{"response": "a", "overall_score": 1}]}, "scored"),
        ({"prompt": "Which?", "completion": "a", "label": True}, "rating"),
        ({"instruction": "Which?", "output": "a"}, "conversation"),
    ],
)
def test_every_format_takes_pictures(row: dict[str, Any], kind: RecordKind, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (record,) = read(write(tmp_path / "a.jsonl", {**row, "images": ["a.png"]}), kind)
    found = shown(record)
    assert found == (Part("image", str(tmp_path / "a.png")), Part("text", "Which?"))
    assert "images" not in record.columns


def test_llama_factory_rows(real_data: Path, tmp_path: Path) -> None:
    text = (real_data / "mllm_demo.json").read_text()
    (tmp_path / "mllm_demo.json").write_text(text)
    for number in (1, 2, 3):
        draw(tmp_path / "mllm_demo_data" / f"{number}.jpg", 60 * number, 90, seed=number)
    records = read(str(tmp_path / "mllm_demo.json"))
    assert len(records) == 6
    assert records[0].messages[2].content == (
        Part("text", "What are they doing?"), Part("image", str(tmp_path / "mllm_demo_data/1.jpg")),
    )  # fmt: skip
    report = check(str(tmp_path / "mllm_demo.json"), Data())
    assert report.usable and report.pictures.describe() == "8 pictures in 6 rows, from 60×90 to 180×90 pixels"


def test_of_two_columns_the_one_that_is_filled(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    for empty in (None, [], ""):
        row = {"prompt": "Who?", "completion": "It.", "images": empty, "image": "a.png"}
        expected = (Part("image", str(tmp_path / "a.png")), Part("text", "Who?"))
        assert shown(read(write(tmp_path / "a.jsonl", row))[0]) == expected
        row |= {"images": ["a.png"], "image": empty}
        assert shown(read(write(tmp_path / "a.jsonl", row))[0]) == expected


def test_pictures_without_marks_beside_turns(tmp_path: Path) -> None:
    """Turns say where their pictures are, under whatever name they stand; one question needs not, as in TRL's rows."""
    draw(tmp_path / "a.png")
    once = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    asked_once = {"prompt": once, "chosen": "A cat.", "rejected": "A dog.", "images": ["a.png"]}
    (record,) = read(write(tmp_path / "a.jsonl", asked_once), "preference")
    assert isinstance(record, Preference) and not isinstance(record.prompt[1].content, str)
    assert [part.type for part in record.prompt[1].content] == ["image", "text"]
    turns = [{"role": "user", "content": "Hello"}, ANSWER, {"role": "user", "content": "Who?"}]
    both = {"chosen": [*turns, ANSWER], "rejected": [*turns, {"role": "assistant", "content": "A dog."}]}
    kinds: list[tuple[dict[str, Any], RecordKind]] = [
        ({"prompt": turns, "completion": "It."}, "conversation"),
        ({"prompt": turns}, "prompt"),
        ({"prompt": turns, "completion": "It.", "label": True}, "rating"),
        (both, "preference"),
    ]
    for row, kind in kinds:
        with pytest.raises(DataError, match="1 images for 0 <image> marks"):
            read(write(tmp_path / "a.jsonl", {**row, "images": ["a.png"]}), kind)
    plain = {"prompt": "Who?", **both, "images": ["a.png"]}
    assert shown(read(write(tmp_path / "a.jsonl", plain), "preference")[0])[0].type == "image"


def test_parts_as_other_services_write_them(tmp_path: Path, cache: Path) -> None:
    bare = base64.b64encode(PNG).decode()
    parts: list[dict[str, Any]] = [
        {"type": "image", "bytes": bare},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": bare}},
        {"type": "image", "source": {"type": "url", "url": url_of(PNG)}},
        {"type": "image", "index": 2},
    ]
    (record,) = read(write(tmp_path / "a.jsonl", asked(parts, images=[bare])))
    assert [Path(part.value).read_bytes() for part in shown(record)] == [PNG] * 4
    turn = {"role": "user", "content": [{"type": "image", "bytes": PNG, "text": None}]}
    table = pa.Table.from_pylist([{"prompt": [turn], "completion": "It."}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (part,) = shown(read(str(tmp_path / "a.parquet"))[0])
    assert Path(part.value).read_bytes() == PNG


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (asked("<image>?", images=["a.png", "a.png"]), "images: 2 images for 1 <image> marks"),
        (asked("?", images=["a.png"]), "images: 1 images for 0 <image> marks"),
        (asked("<image>?", images=[]), "images: 0 images for 1 <image> marks"),
        (asked("<image>?", images=None), "images: 0 images for 1 <image> marks"),
        (asked([{"type": "image"}]), "images: 0 images for a part {type: image} without its own"),
        (asked("<image>?", images=["https://example.org/a"]), "images[0]: is a web address, and nothing is downloaded"),
        (asked([{"type": "image_url", "image_url": {"url": "ftp://x"}}]), "messages[0].content[0]: is a web address"),
        (asked("<image>?", images=["data:image/png;base64,@@"]), "images[0]: the picture's data: URL is broken base64"),
        (asked("<image>?", images=[7]), "images[0]: is not the path of a picture (found"),
        (asked("<image>?", images=[""]), "images[0]: is not the path of a picture (found"),
        (
            asked([{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}], images=["b.png"]),
            "images: other pictures than those named in the turns (found [",
        ),
        (asked("?", videos=["a.mp4"]), "videos: is not supported"),
        (asked("<image>?", images=["a.png"], image="a.png"), "images: two columns hold pictures: images and image"),
        (
            asked([{"type": "image", "blob": "a.png"}]),
            "messages[0].content[0]: an image part whose picture is under no",
        ),
    ],
)
def test_bad_rows_are_one_line_and_counted(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    path = write(tmp_path / "a.jsonl", asked("Fine."), row)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:2: {words}"), str(caught.value)
    records, ledger = read_records(Data(files=(path,), on_bad_row="drop"), ("conversation",))
    assert len(records) == 1 and (ledger.read, ledger.kept, ledger.num_dropped) == (2, 1, 1)


PDF = base64.b64encode(b"%PDF-1.7" + bytes(300)).decode()


@pytest.mark.parametrize("name", ["x" * 300 + ".png", PDF, "~nouser/x.png"])
def test_what_no_file_can_be_called_is_a_missing_picture(name: str, tmp_path: Path) -> None:
    (record,) = read(write(tmp_path / "a.jsonl", asked("<image>?", images=[name])))
    with pytest.raises(BadPicture, match=r"the picture (cannot be read|is missing)"):
        bytes_of(shown(record)[0].value)


def test_pictures_named_twice_are_the_same_by_path_or_bytes(tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png")
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]
    for images in (["a.png"], [base64.b64encode(picture.read_bytes()).decode()]):
        (record,) = read(write(tmp_path / "a.jsonl", asked(parts, images=images)))
        assert [part.type for part in shown(record)] == ["image", "text"]


def test_a_file_put_in_the_place_of_another_has_another_signature(tmp_path: Path) -> None:
    before, after = tmp_path / "a.png", tmp_path / "b.png"
    for path in (before, after):
        path.write_text(path.name)
        os.utime(path, ns=(1, 1))
    first = signature(str(before))
    after.replace(before)
    assert first is not None and first != signature(str(before)) == signature(str(before))


def test_check_names_every_bad_picture(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    (tmp_path / "words.png").write_text("just some words, and many of them\n" * 9)
    names = ["a.png", "bomb.png", "words.png", "nowhere.png"]
    path = write(tmp_path / "a.jsonl", *(asked("<image>?", images=[name]) for name in names))
    report = check(path, Data())
    assert [line.split(" (")[0] for line in report.bad_rows.examples] == [
        f"{path}:2: images: the picture has more than 100,000,000 pixels",
        f"{path}:3: images: the picture is none that can be read",
        f"{path}:4: images: the picture is missing",
    ]
    assert (report.ledger.kept, report.ledger.num_dropped, report.usable) == (1, 3, False)
    training = read_records(Data(files=(path,), on_bad_row="drop"), ("conversation",))
    ledger = Ledger()
    assert len(with_sound_pictures(training[0], "drop", ledger)) == 1
    assert ledger.dropped.keys() == report.ledger.dropped.keys()


@given(num=st.integers(1, 200), most=st.integers(1, 200))
def test_kept_pictures_are_spread_evenly(num: int, most: int) -> None:
    kept = kept_places(num, most)
    assert kept == sorted(set(kept)) and len(kept) == min(num, most) and kept[0] == 0
    if most > 1:
        assert kept[-1] == num - 1
        gaps = {after - before for before, after in pairwise(kept)}
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_more_pictures_than_allowed(tmp_path: Path) -> None:
    for number in range(8):
        draw(tmp_path / f"{number}.png", seed=number)
    marks = "".join(f"{number}<image>" for number in range(8))
    path = write(tmp_path / "a.jsonl", asked(marks, images=[f"{n}.png" for n in range(8)]), asked("Fine."))
    records, ledger = read_records(Data(files=(path,), max_images=4), ("conversation",))
    parts = shown(records[0])
    assert [Path(part.value).stem for part in parts if part.type == "image"] == ["0", "2", "5", "7"]
    assert [part.value for part in parts if part.type == "text"] == ["0", "12", "345", "67"]
    assert ledger.describe() == "2 read, 2 kept, 1 with fewer pictures"
    assert ledger.to_json()["thinned"] == {"count": 1, "lines": {path: "1"}}
    assert check(path, Data(max_images=4)).pictures.num == 4
    few = Conversation(messages=(Message("user", (Part("image", "a"), Part("text", "?"))),))
    assert thinned(few, 1) is few


def test_pictures_of_parquet_are_converted_to_files_beside(tmp_path: Path, cache: Path) -> None:
    rows = [{"prompt": "Which?", "completion": "This.", "image": {"bytes": PNG, "path": None}}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    out = tmp_path / "out" / "rows.jsonl"
    convert(str(tmp_path / "a.parquet"), Data(), "messages", str(out))
    (picture,) = (tmp_path / "out" / "rows_pictures").iterdir()
    assert json.loads(out.read_text())["images"] == [f"rows_pictures/{picture.name}"]
    assert shown(read(str(out))[0]) == (Part("image", str(picture)), Part("text", "Which?"))
    assert picture.read_bytes() == PNG


def test_a_refused_row_leaves_no_pictures_behind(tmp_path: Path, cache: Path) -> None:
    rows = [
        asked("<image>?", images=[url_of(PNG)]),
        asked([{"type": "text", "text": "<image>"}, {"type": "image", "image": url_of(PNG)}]),
    ]
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError, match="cannot be written as sharegpt"):
        convert(path, Data(), "sharegpt", str(tmp_path / "out" / "rows.jsonl"))
    assert not (tmp_path / "out").exists()


def test_pictures_of_a_hub_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    features = datasets.Features(
        prompt=datasets.Value("string"), image=datasets.Image(), images=datasets.List(datasets.Image()),
        turn={"text": datasets.Value("string"), "seen": datasets.List(datasets.Image(), length=1)},
    )  # fmt: skip
    stored = {"bytes": PNG, "path": "a.png"}
    columns = {"prompt": ["Which?"], "image": [stored], "images": [[stored]], "turn": [{"text": "a", "seen": [stored]}]}
    rows = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "set").mkdir()
    rows.to_parquet(str(tmp_path / "set" / "train.parquet"))
    ((_, row),) = read_hub(str(tmp_path / "set"))
    assert isinstance(row, dict) and row["images"] == [row["image"]] == [stored]  # not decoded on the way
    assert row["turn"] == {"text": "a", "seen": [stored]}
    raw = _raw({"turn": features["turn"]}, datasets)["turn"]["seen"]
    assert raw.length == 1 and raw.feature == datasets.Image(decode=False)
    assert _raw(features["prompt"], datasets) is features["prompt"]


def test_sound_in_a_hub_folder_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would take a package that is not asked for; so would writing it, but for the schema."""
    import datasets

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    sound = {"bytes": b"RIFF", "path": "a.wav"}
    features = datasets.Features(prompt=datasets.Value("string"), sound=datasets.Audio()).to_dict()
    table = pa.table({"prompt": ["Who?"], "sound": [sound]})
    (tmp_path / "set").mkdir()
    pa.parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "set" / "train.parquet",
    )
    ((_, row),) = read_hub(str(tmp_path / "set"))
    assert isinstance(row, dict) and row["sound"] == sound


def test_a_mark_among_the_words_is_told_from_a_picture(tmp_path: Path) -> None:
    """Where somebody wrote <image> beside a picture, rows are written with parts, and read again as they were."""
    one = str(draw(tmp_path / "a.png"))
    question = Message("user", (Part("image", one), Part("text", "What does <image> mean?")))
    said = Message("assistant", "An <image> mark.")
    records: dict[str, Any] = {
        "messages": Conversation(messages=(question, said)),
        "preference": Preference(prompt=(question,), chosen=(said,), rejected=(Message("assistant", "No."),)),
        "kto": Rating(prompt=(Message("user", (Part("image", one),)),), response=(said,), label=False),
        "prompt": Prompt(messages=(question,), reference="x"),
    }
    kinds: dict[str, RecordKind] = {"messages": "conversation", "kto": "rating"}
    for to, record in records.items():
        kind: RecordKind = kinds.get(to, to)  # type: ignore[arg-type]
        (again,) = read(write(tmp_path / f"{to}.jsonl", writer_of(to)(record)), kind)
        assert replace(again, origin=record.origin, columns={}) == record
    with pytest.raises(DataError, match="cannot be written as sharegpt"):
        writer_of("sharegpt")(records["messages"])


def test_a_picture_in_an_answer_is_not_lost(tmp_path: Path) -> None:
    one, two = (str(draw(tmp_path / name)) for name in ("a.png", "b.png"))
    drawn = Message("assistant", (Part("image", two), Part("text", "this")))
    question = Message("user", (Part("image", one), Part("text", "Who?")))
    pair = Preference(prompt=(question,), chosen=(drawn,), rejected=(Message("assistant", "No."),))
    rated = Rating(prompt=(question,), response=(drawn,), label=True)
    for to, kind, record in (("preference", "preference", pair), ("kto", "rating", rated)):
        (again,) = read(write(tmp_path / f"{to}.jsonl", writer_of(to)(record)), kind)  # type: ignore[arg-type]
        assert replace(again, origin=record.origin, columns={}) == record


def test_converted_rows_name_the_same_pictures(tmp_path: Path) -> None:
    one = draw(tmp_path / "in" / "a.png")
    path = write(tmp_path / "in" / "a.jsonl", asked("<image>Well?", images=["a.png"]))
    for to in ("messages", "sharegpt"):
        out = tmp_path / "out" / f"{to}.jsonl"
        convert(path, Data(), to, str(out))
        assert shown(read(str(out))[0]) == (Part("image", str(one)), Part("text", "Well?"))
