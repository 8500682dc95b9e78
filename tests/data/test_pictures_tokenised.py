"""Rows with pictures on their way from files to the token cache: kept, found again, and made anew when one changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.data.drawn import bytes_of_drawing, draw, png_header
from whet.config.data import Data
from whet.data import blocks, spread
from whet.data.picture_files import identity
from whet.data.pictures import picture_reader
from whet.data.render import Renderer
from whet.data.sources import read_records
from whet.data.split import split_records
from whet.data.store import Tokenised
from whet.data.tokenise import tokenise
from whet.errors import DataError
from whet.experience.collect import prompt_keys
from whet.schema.records import Message, Part, Prompt


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def renderer(tiny_vlm_checkpoint: Path) -> Renderer:
    path = str(tiny_vlm_checkpoint)
    return Renderer(AutoTokenizer.from_pretrained(path), reader=picture_reader(path))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(text: str, *images: str, answer: str = "A cat.") -> dict[str, Any]:
    turns = [{"role": "user", "content": "<image>" * len(images) + text}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **({"images": list(images)} if images else {})}


def made(renderer: Renderer, path: str, **data: Any) -> Tokenised:
    return tokenise(Data(files=(path,), **data), ("conversation",), renderer)


def test_rows_come_back_with_their_pictures(renderer: Renderer, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 90, 70), draw(tmp_path / "b.jpg", 300, 40, seed=4)
    path = write(tmp_path / "rows.jsonl", [row("Well?", "a.png", "b.jpg"), row("And?"), row("So?", "a.png")])
    first, again = made(renderer, path), made(renderer, path)
    assert (first.cached, again.cached) == (False, True) and first.rows.digest == again.rows.digest
    assert again.rows.with_pictures == [0, 2]
    names = [[Path(picture.source).name for picture in one.pictures] for one in again.rows]
    assert names == [["a.png", "b.jpg"], [], ["a.png"]]
    assert again.rows[0].pictures[0] == again.rows[2].pictures[0]
    assert renderer.reader is not None
    for one in again.rows:
        places = int((np.asarray(one.ids) == renderer.reader.place_id).sum())  # type: ignore[union-attr]
        assert places == sum(picture.num_tokens for picture in one.pictures)
    loaded = renderer.reader.load(again.rows[0].pictures)
    grids = [picture.grid for picture in again.rows[0].pictures if picture.grid]
    assert loaded["image_grid_thw"].tolist() == [[1, 2 * high, 2 * wide] for high, wide in grids]


def test_a_changed_picture_makes_the_rows_anew(renderer: Renderer, tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png")
    path = write(tmp_path / "rows.jsonl", [row("Well?", "a.png")])
    first = made(renderer, path)
    draw(picture, seed=7)
    os.utime(picture, ns=(1, 1))
    changed = made(renderer, path)
    assert not changed.cached and changed.rows.digest != first.rows.digest
    assert made(renderer, path).cached
    picture.unlink()
    with pytest.raises(DataError, match="the picture is missing"):
        made(renderer, path)


def test_the_same_rows_elsewhere_show_other_pictures(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for folder in ("one", "two", "one"):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        if not Path("a.png").exists():
            draw(Path("a.png"), seed=len(digests))
        found = made(renderer, write(Path("rows.jsonl"), [row("Well?", "a.png")]))
        digests.append(found.rows.digest)
        assert found.rows[0].pictures[0].source == str(tmp_path / folder / "a.png")
    assert digests[0] == digests[2] != digests[1]


def test_bad_pictures_are_dropped_and_counted(renderer: Renderer, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    (tmp_path / "cut.jpg").write_bytes(bytes_of_drawing(200, 150, "JPEG")[:-300])
    (tmp_path / "words.png").write_text("just some words, and many of them\n" * 9)
    names = ["a.png", "bomb.png", "cut.jpg", "words.png", "nowhere.png"]
    path = write(tmp_path / "rows.jsonl", [*(row("Well?", name) for name in names), row("No picture?")])
    found = made(renderer, path, on_bad_row="drop")
    account = found.account
    assert (account["read"], account["kept"], found.num_train) == (6, 2, 2)
    assert {reason: dropped["lines"][path] for reason, dropped in account["dropped"].items()} == {
        "the picture has more than 100,000,000 pixels": "2",
        "the picture is damaged or cut short": "3",
        "the picture is none that can be read": "4",
        "the picture is missing": "5",
    }
    with pytest.raises(DataError, match=r"rows\.jsonl:2: images: the picture has more than 100,000,000 pixels"):
        made(renderer, path)
    # A missing picture that has come makes a cached entry void.
    assert made(renderer, path, on_bad_row="drop").cached
    draw(tmp_path / "nowhere.png")
    assert made(renderer, path, on_bad_row="drop").num_train == 3


def test_several_processes_give_the_same_rows(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        draw(tmp_path / f"{number}.png", 40 + 30 * number, 60, seed=number)
    rows = [row(f"Well {n}?", f"{n % 5}.png") if n % 3 else row(f"Well {n}?") for n in range(700)]
    data = Data(files=(write(tmp_path / "rows.jsonl", rows),), max_length=40)
    alone = tokenise(data, ("conversation",), renderer)
    monkeypatch.setattr(spread, "num_processes", lambda: 2)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8192)
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "other"))
    forked = tokenise(data, ("conversation",), renderer)
    assert forked.rows.digest == alone.rows.digest and forked.account == alone.account
    assert [one.pictures for one in forked.rows] == [one.pictures for one in alone.rows]


def test_a_picture_is_its_bytes_when_prompts_are_told_apart(tmp_path: Path) -> None:
    one, copy, other = draw(tmp_path / "a.png"), draw(tmp_path / "copy.png"), draw(tmp_path / "b.png", seed=5)
    keys = prompt_keys(
        Prompt(messages=(Message("user", (Part("image", str(path)), Part("text", "Which?"))),))
        for path in (one, other, copy, tmp_path / "nowhere.png")
    )
    assert keys[2] == f"{keys[0]}.1" and len({key.partition(".")[0] for key in keys}) == 3
    assert identity(str(tmp_path / "nowhere.png")) == str(tmp_path / "nowhere.png")
    names = ["a.png", "copy.png", "b.png"]
    path = write(tmp_path / "rows.jsonl", [row("Which?", name) for name in names])
    records, _ = read_records(Data(files=(path,)), ("conversation",))
    train, held_out = split_records(records, 0.4, 1)
    assert sorted((len(train), len(held_out))) == [1, 2]  # the copy is on the side of its original


def test_a_text_checkpoint_reads_the_rows_without_pictures(tiny_checkpoint: Path, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    path = write(tmp_path / "rows.jsonl", [row("Well?", "a.png"), row("And?")])
    text = Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint), reader=picture_reader(str(tiny_checkpoint)))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: images: holds pictures, and this checkpoint takes none"):
        made(text, path)
    found = made(text, path, on_bad_row="drop")
    dropped = found.account["dropped"]["holds pictures, and this checkpoint takes none"]
    assert found.num_train == 1 and dropped["count"] == 1
