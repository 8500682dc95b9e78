# ruff: noqa: E501  rows are easier to read on one line
"""`whet data check`, `preview` and `convert`, called as the command line calls them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from whet.config.data import Data
from whet.data import blocks, spread
from whet.data.doctor import Report, check, convert, preview, print_report, to_json
from whet.data.sources import read_records
from whet.errors import ConfigError, DataError, ModelError


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_real_file_is_usable(real_data: Path) -> None:
    for path in sorted(real_data.iterdir()):
        if path.name == "mllm_demo.json":
            continue  # its pictures do not come with it
        report = check(str(path), Data())
        assert report.usable, report.problem
        assert report.ledger.read == report.num_rows == report.ledger.kept
        assert printed(report).rstrip().endswith("usable")
        json.dumps(to_json(report))


def test_what_the_real_files_show(real_data: Path) -> None:
    alpaca = check(str(real_data / "alpaca_en_demo.json"), Data())
    assert alpaca.empty == {"input": 999 - 412}
    assert len(alpaca.warnings["the same prompt again"]) == 14
    pictures = check(str(real_data / "mllm_demo.json"), Data())
    assert len(pictures.bad_rows) == 6 and not pictures.usable and pictures.pictures.num == 8
    place = f"{real_data}/mllm_demo.json:2: images: the picture is missing (found {real_data}/mllm_demo_data/1.jpg)"
    assert place in printed(pictures)


def test_bad_rows_are_all_listed(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": ""}, {"instruction": "d"}, {"instruction": "e", "output": "f"}]
    path = write(tmp_path / "a.jsonl", rows)
    report = check(path, Data())
    assert not report.usable
    assert [text.partition(";")[0] for text in report.bad_rows.examples] == [
        f"{path}:2: output: is empty", f"{path}:3: output: is missing (found fields instruction)"
    ]  # fmt: skip
    assert "not usable as it is" in printed(report)
    assert check(path, Data(on_bad_row="drop")).usable


def test_suspicious_pairs(tmp_path: Path) -> None:
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    report = check(write(tmp_path / "a.jsonl", [same, {"prompt": "a", "chosen": "b", "rejected": "c"}, same]), Data())
    assert report.warnings["chosen equals rejected: nothing to learn"].examples == ["1", "3"]
    assert report.warnings["the same row again"].examples == ["3 = 1"]
    assert report.warnings["the same prompt again"].examples == ["2 = 1", "3 = 1"]


def test_lines_of_several_files_name_theirs(tmp_path: Path) -> None:
    same, other = {"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "c", "chosen": "d", "rejected": "e"}
    first, second = write(tmp_path / "a.jsonl", [same]), write(tmp_path / "b.jsonl", [other, same, same])
    report = check(str(tmp_path), Data())
    assert report.warnings["chosen equals rejected: nothing to learn"].examples == [
        f"{first}:1", f"{second}:2", f"{second}:3"
    ]  # fmt: skip
    assert report.warnings["the same row again"].examples == [f"{second}:2 = {first}:1", f"{second}:3 = {first}:1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "has no rows"), ('[{"a": 1},', "broken JSON"), ('[{"foo": 1}]', "no known format has these fields"), (None, "no such file")],
)
def test_files_that_are_no_use(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    report = check(str(path), Data())
    assert not report.usable and problem in str(report.problem)
    assert problem in printed(report)


def test_lengths(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * size} for size in (1, 20, 20, 100)]
    (lengths,) = check(write(tmp_path / "a.jsonl", rows), Data()).lengths
    assert lengths.sizes.tolist() == [1, 20, 20, 100]
    assert lengths.histogram() == [(0, 16, 1), (16, 32, 2), (32, 64, 0), (64, 128, 1)]
    assert (lengths.quantile(0.5), lengths.quantile(0.95)) == (20, 100)


def test_tokens_by_a_checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" * 300}, {"prompt": "a" * 300, "completion": "b"},
        {"prompt": "a", "completion": "<|im_end|>"},
    ]  # fmt: skip
    report = check(write(tmp_path / "a.jsonl", rows), Data(max_length=64), str(tiny_checkpoint))
    assert [lengths.unit for lengths in report.lengths] == ["characters", "tokens"]
    assert [place.split()[0] for place in report.warnings["longer than max_length 64"].examples] == ["2"]
    assert [place.split()[0] for place in report.warnings["prompt alone fills max_length 64"].examples] == ["3"]
    assert report.warnings["the text holds special tokens of the checkpoint"].examples == ["4"]
    with pytest.raises(ModelError, match="has no tokenizer"):
        check(str(tmp_path / "a.jsonl"), Data(), str(tmp_path))


def test_what_would_stop_training_is_not_usable(tmp_path: Path, tiny_checkpoint: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,AA=="}]}, *turns[1:]]}])
    report = check(path, Data(), str(tiny_checkpoint))
    assert not report.usable and (report.ledger.kept, len(report.bad_rows)) == (1, 1)
    assert check(path, Data(on_bad_row="drop"), str(tiny_checkpoint)).usable
    path = write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" * 300}])
    long = check(path, Data(max_length=64, on_overlong="error"), str(tiny_checkpoint))
    assert not long.usable and long.bad_rows.examples[0].startswith(f"{path}:2: longer than max_length (found ")
    dropping = check(path, Data(max_length=64, on_overlong="error", on_bad_row="drop"), str(tiny_checkpoint))
    assert dropping.problem == long.bad_rows.examples[0], "no row of this kind is ever dropped"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_is_no_text_is_spelled_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"\xff.jsonl")).write_text('{"prompt": "a", "completion": "b"}\n{broken\n')
    assert r"a/\udcff.jsonl:2: broken JSON" in printed(check(str(tmp_path / "a"), Data()))
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), width=200)
    preview(str(tmp_path / "a"), Data(on_bad_row="drop"), None, 2, console)
    preview(str(tmp_path / "a"), Data(on_bad_row="drop"), None, 2, console, tmp_path / "a.html")
    with pytest.raises(DataError, match=r"a/\\udcff\.jsonl:2"):
        preview(str(tmp_path / "a"), Data(), None, 2, console)


def shown(path: str, tokenizer: Path | None = None, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200, **options)
    preview(path, Data(), str(tokenizer) if tokenizer else None, 2, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_preview_marks_what_is_trained(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "Why [bold]?", "completion": "So."}, {"prompt": "x", "completion": "y"}, {"prompt": "z", "completion": "z"}])
    text = shown(path, tiny_checkpoint)
    assert "<|im_start|>user\nWhy [bold]?<|im_end|>\n<|im_start|>assistant\n«So.<|im_end|>»" in text
    assert text.count("conversation") == 2 and "3 read, 3 kept; prompt_completion" in text
    coloured = shown(path, tiny_checkpoint, force_terminal=True, color_system="standard")
    assert "«" not in coloured and "\x1b[32mSo." in coloured
    assert "user: Why [bold]?\n«assistant: So." in shown(path)


@pytest.mark.parametrize(
    ("row", "titles"),
    [
        ({"prompt": "q", "chosen": "yes", "rejected": "no"}, ["chosen", "rejected"]),
        ({"prompt": "q", "completion": "yes", "label": False}, ["label bad"]),
        ({"prompt": "q", "responses": ["yes", "no"], "rankings": [2, 1]}, ["rank 1", "rank 2"]),
        ({"prompt": "q", "response": "yes", "reward": 0.5}, ["reward 0.5"]),
        ({"prompt": "q", "reference": "yes"}, ["reference, never shown to a model"]),
    ],
)
def test_preview_of_every_kind(tmp_path: Path, tiny_checkpoint: Path, row: dict[str, Any], titles: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    for text in (shown(path), shown(path, tiny_checkpoint)):
        assert all(f"\n{title}\n" in text for title in titles)


def test_preview_of_the_real_files(real_data: Path, tiny_checkpoint: Path) -> None:
    for path in sorted(real_data.iterdir()):
        assert "read" in shown(str(path), tiny_checkpoint)


CONVERSIONS = [
    ("alpaca_en_demo.json", "messages"), ("alpaca_zh_demo.json", "alpaca"), ("alpaca_zh_demo.json", "sharegpt"),
    ("glaive_toolcall_en_demo.json", "messages"), ("glaive_toolcall_en_demo.json", "sharegpt"), ("mllm_demo.json", "sharegpt"),
    ("mllm_demo.json", "messages"), ("dpo_en_demo.json", "preference"), ("kto_en_demo.json", "prompt"), ("gsm8k_train.jsonl", "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "to"), CONVERSIONS)
def test_converted_real_files_say_the_same(real_data: Path, tmp_path: Path, name: str, to: str) -> None:
    kind = {"preference": "preference", "prompt": "prompt"}.get(to, "conversation")
    out = str(tmp_path / "out.jsonl")
    ledger = convert(str(real_data / name), Data(), to, out)
    before, _ = read_records(Data(files=(str(real_data / name),)), (kind,))  # type: ignore[arg-type]
    after, _ = read_records(Data(files=(out,)), (kind,))  # type: ignore[arg-type]
    assert ledger.kept == len(before) == len(after)
    for one, two in zip(before, after, strict=True):
        for part in ("messages", "prompt", "chosen", "rejected", "tools", "reference"):
            assert getattr(one, part, None) == getattr(two, part, None)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), to=st.sampled_from(["messages", "alpaca", "sharegpt"]))
def test_any_text_survives_conversion(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], to: str) -> None:
    folder = tmp_path_factory.mktemp("convert")
    path = write(folder / "a.jsonl", [{"instruction": question, "output": answer} for question, answer in rows])
    convert(path, Data(), to, str(folder / "b.jsonl"))
    records, _ = read_records(Data(files=(str(folder / "b.jsonl"),)), ("conversation",))
    assert [tuple(message.text for message in record.messages) for record in records] == rows  # type: ignore[union-attr]


def test_convert_refuses(tmp_path: Path, real_data: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="exists already, and is not overwritten"):
        convert(path, Data(), "messages", path)
    with pytest.raises(ConfigError, match=r"cannot be written .*use messages"):
        convert(path, Data(), "mesages", str(tmp_path / "b.jsonl"))
    with pytest.raises(DataError, match=r"cannot be written as alpaca .*write messages or sharegpt"):
        convert(str(real_data / "glaive_toolcall_en_demo.json"), Data(), "alpaca", str(tmp_path / "b.jsonl"))
    with pytest.raises(DataError, match="cannot write"):
        convert(path, Data(), "messages", f"{path}/b.jsonl")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.skipif(sys.platform != "linux", reason="files are read by one process there")
def test_processes_say_what_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    rows: list[Any] = [{"prompt": f"q {n % 90}", "chosen": "yes " * (n % 50), "rejected": "no", "note": n % 3 or None} for n in range(120)]
    rows[33:33] = [{"prompt": "x", "chosen": "same", "rejected": "same"}, rows[5], [1, 2]]
    path = write(tmp_path / "a.jsonl", rows)
    alone = check(path, Data(max_length=64), str(tiny_checkpoint))
    monkeypatch.setattr(spread, "num_processes", lambda: 2)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    forked = check(path, Data(max_length=64), str(tiny_checkpoint))
    assert json.dumps(to_json(forked)) == json.dumps(to_json(alone)) and printed(forked) == printed(alone)
    assert alone.warnings["the same row again"].examples == ["35 = 6"] and len(alone.warnings["the same prompt again"]) == 29
    assert len(alone.bad_rows) == 4, "three without an answer, one list"
    assert {"longer than max_length 64", "chosen equals rejected: nothing to learn"} <= alone.warnings.keys()


def test_what_is_said_of_many_bad_rows_is_short(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}] + [{"prompt": "a", "completion": ""}] * 3000)
    report = check(path, Data())
    found = to_json(report)
    assert found["bad_rows"]["count"] == 3000 and found["bad_rows"]["lines"] == {path: "2-3001"}
    assert len(found["bad_rows"]["examples"]) == 1000 and "and 2980 more rows that cannot be read" in printed(report)
    assert found["ledger"]["dropped"]["completion is empty"]["lines"] == {path: "2-3001"}
    assert found["warnings"]["the same row again"]["count"] == 2999


def test_the_beginning_of_a_large_file_is_previewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.data.preview.MOST_READ", 5)
    path = write(tmp_path / "a.jsonl", [{"prompt": f"{n}", "completion": "b"} for n in range(9)])
    assert "5 read, 5 kept of the first 5 rows (`whet data check` reads all); prompt_completion" in shown(path)


def test_checking_needs_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    program = (
        "import sys; from whet.config.data import Data; from whet.data.doctor import check, preview, convert\n"
        f"assert check({path!r}, Data()).usable; preview({path!r}, Data()); convert({path!r}, Data(), 'messages', {path + '.out'!r})\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], capture_output=True)
