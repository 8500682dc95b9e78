"""Entries of the token cache: whole or not at all, and never needed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.data import store
from whet.data.cache import cache_folder
from whet.data.rendered import Rendered, RenderedGroup
from whet.data.store import Tokenised, load, save
from whet.data.table import ARRAYS, Table, TokenRows, table_of

KEY = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "cache"))
    store._say_once.cache_clear()
    return tmp_path / "cache" / "tokens"


def made() -> tuple[Table, Tokenised]:
    rows = [
        RenderedGroup(prompt_ids=(1, 2), response_ids=((3, 4), (5,)), values=(2.5, 0.0)),
        RenderedGroup(prompt_ids=(6,), response_ids=((7,), (8, 9))),
    ]
    table = table_of(rows)
    account = {"read": 3, "kept": 2, "notes": ["ü"], "rows": {"train": 1, "eval": 1}}
    return table, Tokenised(rows=TokenRows(table), num_train=1, account=account, summary="3 read, 2 kept")


def content(found: Tokenised) -> Any:
    rows = [
        (np.asarray(row.prompt_ids).tolist(), [np.asarray(ids).tolist() for ids in row.response_ids], row.values)
        for row in found.rows
        if isinstance(row, RenderedGroup)
    ]
    return rows, found.num_train, found.account, found.summary, found.rows.digest, found.rows.lengths.tolist()


def test_what_is_saved_is_found(cache: Path) -> None:
    assert load(KEY) is None
    table, first = made()
    kept = save(KEY, table, first)
    found = load(KEY)
    assert found is not None
    assert content(found) == content(kept) == content(first)
    assert (found.cached, kept.cached) == (True, False)
    assert [path.name for path in cache.iterdir()] == [KEY]
    assert all(isinstance(getattr(each.rows._arrays, name), np.memmap) for each in (found, kept) for name in ARRAYS)
    assert load("cd" * 32) is None


def test_an_entry_of_conversations(cache: Path) -> None:
    table = table_of([Rendered(ids=(1, 2), weights=(0.0, 0.5), last=False), Rendered(ids=(1, 3), weights=(0.0, 1.0))])
    save(KEY, table, Tokenised(rows=TokenRows(table), num_train=2, account={}, summary=""))
    found = load(KEY)
    assert found is not None
    assert [np.asarray(row.weights).tolist() for row in found.rows if isinstance(row, Rendered)] == [[0, 0.5], [0, 1]]
    assert [row.last for row in found.rows if isinstance(row, Rendered)] == [False, True]


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in store.FILES), "about.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone", "empty", "longer"])
def test_an_entry_that_is_not_whole_is_made_again(cache: Path, name: str, how: str) -> None:
    table, first = made()
    save(KEY, table, first)
    path = cache / KEY / name
    raw = bytearray(path.read_bytes())
    match how:
        case "cut":
            path.write_bytes(raw[:-1] if name != "about.json" else raw[:-20])
        case "changed":
            swapped = bytes(raw).replace(b"3 read", b"4 read")  # still sound JSON
            raw[-2] ^= 1
            path.write_bytes(raw if name != "about.json" else swapped)
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "longer":
            path.write_bytes(raw + b"x")
    assert load(KEY) is None
    save(KEY, table, first)
    found = load(KEY)
    assert found is not None and content(found) == content(first)
    assert [path.name for path in cache.iterdir()] == [KEY]


def test_writers_at_once_leave_one_sound_entry(cache: Path) -> None:
    table, first = made()
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda _: save(KEY, table, first), range(24)))
    assert all(content(each) == content(first) for each in kept)
    assert [path.name for path in cache.iterdir()] == [KEY]
    found = load(KEY)
    assert found is not None and content(found) == content(first)


def test_processes_at_once_leave_one_sound_entry(cache: Path, repository: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/data')\n"
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        "spec = spec_from_file_location('t', 'tests/data/test_store.py'); t = module_from_spec(spec)\n"
        "sys.modules['t'] = t; spec.loader.exec_module(t)\n"
        "for _ in range(20):\n    assert t.content(t.save(t.KEY, *t.made())) == t.content(t.made()[1])\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=repository) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert [path.name for path in cache.iterdir()] == [KEY]
    assert load(KEY) is not None


def test_rows_in_use_outlive_their_entry(cache: Path) -> None:
    table, first = made()
    kept = save(KEY, table, first)
    shutil.rmtree(cache)
    assert content(kept) == content(first)


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "file"))
    store._say_once.cache_clear()
    table, first = made()
    assert load(KEY) is None
    assert save(KEY, table, first) is first and save(KEY, table, first) is first
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"token cache: cannot write to {tmp_path / 'file'}")


def test_a_full_disk_leaves_nothing_behind(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, array: Any) -> None:
        if path.name == "weights.npy":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(b"")

    monkeypatch.setattr(np, "save", full)
    table, first = made()
    assert save(KEY, table, first) is first
    assert list(cache.iterdir()) == []
    assert "No space left on device" in capsys.readouterr().err


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WHET_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "whet"
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cache_folder() is None
    table, first = made()
    assert load(KEY) is None and save(KEY, table, first) is first


def test_what_killed_processes_left_is_removed_in_time(cache: Path) -> None:
    for name, age in ((".abc-1-1", 2 * store.STALE_SECONDS), (".abc-2-2", 10)):
        (cache / name).mkdir(parents=True)
        (cache / name / "ids.npy").write_bytes(b"x")
        then = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (then, then))
    save(KEY, *made())
    assert sorted(path.name for path in cache.iterdir()) == [".abc-2-2", KEY]
