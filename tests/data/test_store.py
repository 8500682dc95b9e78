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
from whet.data.shelf import GrowingArray, NoRoom, Shelf, array_hash
from whet.data.store import Tokenised, finish, load, only_maker, publish, workplace
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


def save(key: str, table: Table, made: Tokenised) -> Tokenised:
    """Make an entry as `tokenise` does, but without asking whether another process makes it."""
    with workplace(key) as folder:
        shelf = Shelf(folder)
        shelf.add(table)
        kept = finish(shelf, np.arange(len(made.rows)), made.num_train, made.account, made.summary)
        publish(folder, key)
    return kept


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
            raw[-2] ^= 1  # a number, or the header of an array without any
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


def test_a_touched_file_is_read_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(KEY, *made())
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return array_hash(path)

    monkeypatch.setattr(store, "array_hash", counted)
    assert load(KEY) is not None and read == [], "what nobody has touched is not read to be found the same"
    (cache / KEY / "lines.npy").touch()
    assert load(KEY) is not None and read == ["lines.npy"]
    shutil.copytree(cache / KEY, cache / "copy")
    shutil.rmtree(cache / KEY)
    (cache / "copy").rename(cache / KEY)
    assert load(KEY) is not None and len(read) == 1 + len(store.FILES), "a copied cache is known by its content"


def test_one_maker_at_a_time(cache: Path) -> None:
    """Whoever comes second finds what the first has made; what a killed one left is gone."""
    (cache / f".{KEY[:16]}-1-1").mkdir(parents=True)
    made_by: list[int] = []

    def make(number: int) -> Any:
        with only_maker(KEY):
            if (found := load(KEY)) is None:
                made_by.append(number)
                found = save(KEY, *made())
            return content(found)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(make, range(24)))
    assert len(made_by) == 1 and all(each == found[0] for each in found)
    assert [path.name for path in cache.iterdir()] == [KEY]


def test_what_a_killed_maker_held_is_free(cache: Path, repository: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from whet.data.store import only_maker, workplace\n"
        f"with only_maker({KEY!r}), workplace({KEY!r}) as folder:\n"
        "    (folder / 'ids.npy').write_bytes(b'x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=False)
    assert len(list(cache.glob(".*-*"))) == 1
    with only_maker(KEY):
        assert not list(cache.glob(".*-*"))


def test_tables_behind_each_other(tmp_path: Path) -> None:
    """Sequences, values and files keep to their rows, and the rows to the order that they are given."""
    one = table_of([Rendered(ids=(1, 2), weights=(0.0, 1.0)), Rendered(ids=(3,), weights=(1.0,), last=False)])
    other = table_of([Rendered(ids=(4, 5, 6), weights=(0.0, 0.5, 1.0))])
    shelf = Shelf(tmp_path)
    for table in (one, table_of(()), other):
        shelf.add(table)
    found = finish(shelf, np.array([2, 0, 1]), 1, {}, "")
    rows = [row for row in found.rows if isinstance(row, Rendered)]
    assert [np.asarray(row.ids).tolist() for row in rows] == [[4, 5, 6], [1, 2], [3]]
    assert [np.asarray(row.weights).tolist() for row in rows] == [[0.0, 0.5, 1.0], [0.0, 1.0], [1.0]]
    assert [row.last for row in rows] == [True, True, False] and found.rows.lengths.tolist() == [3, 2, 1]
    assert [np.asarray(row.ids).tolist() for row in found.rows[1:] if isinstance(row, Rendered)] == [[1, 2], [3]]


def test_a_full_disk_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(array: GrowingArray, rows: Any) -> None:
        raise NoRoom(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(GrowingArray, "add", full)
    with pytest.raises(NoRoom):
        save(KEY, *made())
    assert list(cache.iterdir()) == []


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WHET_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "whet"
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cache_folder() is None
    assert load(KEY) is None


def test_what_killed_processes_left_is_removed_in_time(cache: Path) -> None:
    for name, age in ((".abc-1-1", 2 * store.STALE_SECONDS), (".abc-2-2", 10)):
        (cache / name).mkdir(parents=True)
        (cache / name / "ids.npy").write_bytes(b"x")
        then = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (then, then))
    save(KEY, *made())
    assert sorted(path.name for path in cache.iterdir()) == [".abc-2-2", KEY]
