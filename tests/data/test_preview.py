"""Rows to look at: where pictures stand in words, and small on a page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from tests.data.drawn import draw
from whet.cli import main
from whet.config.data import Data
from whet.data.preview import preview
from whet.data.thumbnail import SIDE, thumbnail
from whet.errors import DataError


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def shown(path: str, model: Path | None, page: Path | None = None) -> str:
    console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    preview(path, Data(), str(model) if model else None, 3, console, page)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def rows(tmp_path: Path) -> str:
    draw(tmp_path / "cat.png", 90, 70)
    draw(tmp_path / "dogs.jpg", 28, 28, seed=3)
    turns = [{"role": "user", "content": "<image>Which [b]<script>?<image>"}, {"role": "assistant", "content": "So."}]
    return write(tmp_path / "a.jsonl", {"messages": turns, "images": ["cat.png", "dogs.jpg"]})


def test_where_the_image_tokens_stand(rows: str, tiny_vlm_checkpoint: Path) -> None:
    text = shown(rows, tiny_vlm_checkpoint)
    assert "<|vision_start|>[image 2×3 = 6 tokens cat.png]<|vision_end|>Which [b]<script>?" in text
    assert "<|vision_start|>[image 2×2 = 4 tokens dogs.jpg]<|vision_end|>" in text
    assert "«So.<|im_end|>»" in text and "image_pad" not in text
    assert "user: [image cat.png]Which [b]<script>?[image dogs.jpg]" in shown(rows, None)


def test_limits_of_pixels(rows: str, tiny_vlm_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--max-pixels` is what `model.vision.max_pixels` is in a plan."""
    said, limits = dict[str, str](), ["--min-pixels", "784", "--max-pixels", "1600"]
    for command in ("preview", "check"):
        with pytest.raises(SystemExit) as caught:
            main(["data", command, rows, "--model", str(tiny_vlm_checkpoint), *limits])
        assert caught.value.code == 0
        said[command] = capsys.readouterr().out
    assert "[image 1×1 = 1 token cat.png]" in said["preview"]
    assert "median 42" in said["check"], "two tokens for two pictures"
    with pytest.raises(SystemExit) as caught:
        main(["data", "preview", rows, "--max-pixels", "1600"])
    assert caught.value.code == 2 and "add --model DIR" in capsys.readouterr().err


def test_pairs_with_pictures(tmp_path: Path, tiny_vlm_checkpoint: Path) -> None:
    draw(tmp_path / "cat.png", 90, 70)
    pair = {"problem": "Which?", "chosen": "One.", "rejected": "Two.", "images": ["cat.png"]}
    text = shown(write(tmp_path / "p.jsonl", pair), tiny_vlm_checkpoint)
    assert "[image 2×3 = 6 tokens cat.png]<|vision_end|>Which?" in text and "«One.<|im_end|>»" in text


def test_a_page_with_thumbnails(rows: str, tiny_vlm_checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert f"{page}: 1 of 1 records" in shown(rows, tiny_vlm_checkpoint, page)
    html = page.read_text()
    small = re.findall(r'<img src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)" alt="">', html)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in small]
    assert len(sizes) == 2 and sizes[1] == (28, 28) and max(sizes[0]) <= SIDE
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "[image 2×3 = 6 tokens cat.png]" in html and "<mark>So." in html
    with pytest.raises(DataError, match="exists already"):
        shown(rows, None, page)


def test_a_picture_that_cannot_be_read_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    assert thumbnail(str(tmp_path / "x.png")) is None and thumbnail(str(tmp_path / "nowhere.png")) is None


def test_a_picture_that_has_changed_is_shown_anew(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png")
    first = thumbnail(str(path))
    assert thumbnail(str(path)) == first
    draw(path, 300, 80, seed=9)
    assert thumbnail(str(path)) != first


def test_names_of_files_are_no_markup(tmp_path: Path) -> None:
    (tmp_path / "x[").mkdir()
    for name in ("x[/]y.jsonl", "[bold]x.jsonl"):
        path = write(tmp_path / name, {"prompt": "a", "completion": "b"})
        assert f"{name}:1  conversation" in shown(path, None)


def test_turns_without_weight_are_not_shown_as_trained(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bad", "weight": 0}]
    more = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "good"}]
    text = shown(write(tmp_path / "a.jsonl", {"messages": [*turns, *more]}), None)
    assert "assistant: bad" in text and "«assistant: bad" not in text and "«assistant: good" in text


def test_more_rows_than_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.data.preview.MOST_READ", 1)
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    preview(str(tmp_path / "a.txt"), Data(), num=2, page=tmp_path / "page.html")
    assert "2 kept of the first 2 rows" in (tmp_path / "page.html").read_text()


def test_a_page_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"})
    with pytest.raises(DataError, match=r"cannot write \(found File name too long\)"):
        shown(path, None, tmp_path / ("x" * 300))
