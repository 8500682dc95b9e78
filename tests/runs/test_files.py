"""Files that survive a kill: whole under their name, or not there at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from whet.errors import RunError
from whet.runs.files import (
    appending,
    read_json,
    read_jsonl,
    read_yaml,
    replacing,
    replacing_folder,
    sweep,
    write_json,
    write_jsonl,
    write_text,
    writing,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [{"text": "zwölf 答案\u2028\n", "number": 0.1 + 0.2, "none": None}, {}]
    write_jsonl(tmp_path / "deep" / "er" / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "deep" / "er" / "rows.jsonl") == rows
    write_json(tmp_path / "one.json", rows[0])
    assert read_json(tmp_path / "one.json") == rows[0]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["one.json"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        assert path.read_text() == "old"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"a.json: cannot write \(found No space left on device\); free space"):
        write_text(path, "new and longer")
    assert path.read_text() == "old"


@pytest.mark.parametrize("torn", [b"", b'{"a": 3', b'{"a": "\xc3', b"\x00\x00\x00", b"\n"])
def test_a_torn_last_line_is_left_out_and_cut_off(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + torn)
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    with appending(path) as handle:
        handle.write('{"a": 4}\n')
    assert [json.loads(line) for line in path.read_text().split("\n") if line] == [{"a": 1}, {"a": 2}, {"a": 4}]


@pytest.mark.parametrize("broken", [b'{"a": 1', b"\xff\x00"])
def test_a_broken_line_in_the_middle_is_not_swallowed(broken: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 0}\n' + broken + b'\n{"a": 2}\n')
    with pytest.raises(RunError, match=r"rows\.jsonl:2: is damaged \(found .*\); restore it, or begin anew with --fresh"):
        read_jsonl(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("read", [read_json, read_yaml])
@pytest.mark.parametrize("text", [b"{", b"\xff\x00"])
def test_a_damaged_file_is_one_line(read: Callable[[Path], object], text: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(text)
    with pytest.raises(RunError, match=r"plan: is damaged \(found ") as caught:
        read(tmp_path / "plan")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3"])
def test_keys_and_values_are_wanted_of_yaml(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan").write_text(text)
    with pytest.raises(RunError, match=r"plan: is damaged \(found no keys and values but "):
        read_yaml(tmp_path / "plan")


def test_a_missing_file_has_no_rows_and_can_be_begun(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert read_jsonl(path) == []
    with appending(path) as handle:
        handle.write("{}\n")
    assert read_jsonl(path) == [{}]


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), SafetensorError("I/O error: No space left on device")]
)
def test_a_refusal_to_write_names_the_place(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"{tmp_path}: cannot write .*(Permission denied|No space)"), writing(tmp_path):
        raise error


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), writing(tmp_path):
        raise ValueError("mine")


@pytest.mark.parametrize("open_it", [appending, replacing])
def test_what_fails_in_the_work_of_a_writer_is_no_failure_to_write(
    open_it: Callable[[Path], Any], tmp_path: Path
) -> None:
    with pytest.raises(ConnectionResetError), open_it(tmp_path / "rows.jsonl") as handle:
        handle.write("{}\n")
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("length", [1, 100_000])
def test_a_disk_that_is_full_while_lines_are_written_is_named(length: int, tmp_path: Path) -> None:
    (tmp_path / f".rows.jsonl.tmp{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"rows\.jsonl: cannot write \(found No space left"):
        write_text(tmp_path / "rows.jsonl", "x" * length)
    assert not [*tmp_path.iterdir()]


def test_a_folder_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []
    target = tmp_path / "step"

    def fsync(descriptor: int) -> None:
        flushed.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing_folder(target) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text("1")
    assert set(flushed[:-1]) == {("model", False), ("weights", False), (".step.tmp", False)}
    assert flushed[-1] == (tmp_path.name, True) and (target / "model" / "weights").read_text() == "1"


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    for name in (".config.yaml.tmp10122", "rank-0/.rollouts.jsonl.tmp7", "checkpoints/.step-000002.tmp/state.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write_text(tmp_path / "config.yaml", "kept")
    sweep(tmp_path, deep=False)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3
    sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.yaml"]
    assert not (tmp_path / "checkpoints" / ".step-000002.tmp").exists()
