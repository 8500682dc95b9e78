"""From files to rows: made once, found again with the same ledger, made again when what they depend on changes."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.config.data import Data, Source
from whet.data import blocks, keys, render, spread, store, tokenise
from whet.data.keys import rows_key
from whet.data.ledger import Ledger
from whet.data.render import SAME_AFTER_CUT, Renderer, fit, render_records
from whet.data.rendered import Rendered, RenderedGroup
from whet.data.sources import read_records, split_records
from whet.data.store import Tokenised
from whet.data.table import TokenRows
from whet.errors import DataError, ModelError
from whet.ranks.pulse import pulse
from whet.schema.records import Message, Preference, RecordKind

_spec = importlib.util.spec_from_file_location("data_templates_tokenise", Path(__file__).with_name("templates.py"))
assert _spec and _spec.loader
T = importlib.util.module_from_spec(_spec)
sys.modules["data_templates_tokenise"] = T
_spec.loader.exec_module(T)

PAIRS: tuple[RecordKind, ...] = ("preference",)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(T.byte_level(T.CHATML))


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(num: int, first: int = 0) -> list[dict[str, Any]]:
    """Preferences of different lengths; of every seventh the answers differ at their ends only."""
    rows = []
    for n in range(first, first + num):
        same = "so it goes " * 12
        chosen, rejected = (same + "on", same + "off") if n % 7 == 3 else (f"yes {n} " * (n % 30 + 1), f"no {n}")
        rows.append({"prompt": f"Question {n}?", "chosen": chosen, "rejected": rejected, "margin": n / 2})
    return rows


def content(rows: TokenRows) -> list[Any]:
    def ids(part: Any) -> list[int]:
        return list(np.asarray(part).tolist())

    return [
        (row.origin, ids(row.prompt_ids), [ids(each) for each in row.response_ids], row.values)
        if isinstance(row, RenderedGroup)
        else (row.origin, ids(row.ids), np.asarray(row.weights).tolist(), row.last)
        for row in rows
    ]


def directly(renderer: Renderer, data: Data, kinds: tuple[RecordKind, ...]) -> tuple[list[Any], Ledger]:
    """Record by record, without chunks, arrays, processes or cache."""
    records, ledger = read_records(data, kinds)
    rows: list[Any] = []
    for record in records:
        made: Iterator[Any] = render_records(renderer, [record], data.on_bad_row, ledger)
        rows += fit(made, data.max_length, data.on_overlong, ledger)
    return rows, ledger


def plain(rows: list[Any]) -> list[Any]:
    return [
        (row.origin, list(row.prompt_ids), [list(ids) for ids in row.response_ids], row.values)
        if isinstance(row, RenderedGroup)
        else (row.origin, list(row.ids), list(row.weights), row.last)
        for row in rows
    ]


def test_rows_and_ledger_are_those_of_single_records(tmp_path: Path) -> None:
    renderer = Renderer(T.byte_level(T.CHATML), margin="column")
    data = Data(files=(write(tmp_path / "a.jsonl", pairs(600)),), max_length=100)
    rows, ledger = directly(renderer, data, PAIRS)
    made = tokenise.tokenise(data, PAIRS, renderer)
    assert content(made.rows) == plain(rows)
    assert made.account == ledger.to_json() | {"rows": {"train": len(rows), "eval": 0}}
    assert made.summary == ledger.describe()
    assert ledger.truncated and ledger.dropped[SAME_AFTER_CUT], "the case must have both"
    assert content(made.rows)[0][3] == (0.0, 0.0)
    assert content(made.rows)[1][3] == (0.5, 0.0)


@pytest.mark.parametrize(
    ("file", "kind"),
    [("dpo_en_demo.json", "preference"), ("kto_en_demo.json", "rating"), ("alpaca_zh_demo.json", "conversation")],
)
def test_real_files_twice(real_data: Path, renderer: Renderer, file: str, kind: RecordKind) -> None:
    data = Data(files=(str(real_data / file),), max_length=256, num_samples=60, eval_fraction=0.2)
    first = tokenise.tokenise(data, (kind,), renderer)
    again = tokenise.tokenise(data, (kind,), renderer)
    assert (first.cached, again.cached) == (False, True)
    assert same(first, again)
    assert first.account["kept"] == len(first.rows) == sum(first.account["rows"].values())
    rows, _ = directly(renderer, replace_data(data, eval_fraction=0.0), (kind,))
    assert sorted(map(str, content(again.rows))) == sorted(map(str, plain(rows)))


def same(one: Tokenised, other: Tokenised) -> bool:
    return (
        content(one.rows) == content(other.rows)
        and (one.num_train, one.account, one.summary) == (other.num_train, other.account, other.summary)
        and json.dumps(one.account) == json.dumps(other.account)
        and one.rows.digest == other.rows.digest
    )


def replace_data(data: Data, **changes: Any) -> Data:
    return Data.model_validate(data.model_dump() | changes)


def test_an_edited_row_is_noticed(tmp_path: Path, renderer: Renderer) -> None:
    rows = pairs(50)
    data = Data(files=(write(tmp_path / "a.jsonl", rows),))
    first = tokenise.tokenise(data, PAIRS, renderer)
    rows[32]["chosen"] = rows[32]["chosen"].replace("32", "23")
    write(tmp_path / "a.jsonl", rows)
    second = tokenise.tokenise(data, PAIRS, renderer)
    assert not second.cached
    assert [i for i, (a, b) in enumerate(zip(content(first.rows), content(second.rows), strict=True)) if a != b] == [32]
    write(tmp_path / "a.jsonl", pairs(50))
    assert tokenise.tokenise(data, PAIRS, renderer).cached, "the first entry is still there"


DATA_CHANGES: list[dict[str, Any]] = [
    {"max_length": 99}, {"on_overlong": "drop"}, {"on_bad_row": "drop"}, {"seed": 1}, {"num_samples": 20},
    {"eval_fraction": 0.1}, {"format": "preference"}, {"system": "Be brief."}, {"columns": {"margin": "much"}},
]  # fmt: skip


@pytest.mark.parametrize("change", DATA_CHANGES, ids=lambda change: next(iter(change)))
def test_every_setting_of_the_data_is_part_of_the_key(
    tmp_path: Path, renderer: Renderer, change: dict[str, Any]
) -> None:
    data = Data(files=(write(tmp_path / "a.jsonl", pairs(5)),))
    assert rows_key(data, PAIRS, renderer, {}) == rows_key(data, PAIRS, renderer, {})
    assert rows_key(data, PAIRS, renderer, {}) != rows_key(replace_data(data, **change), PAIRS, renderer, {})


def test_what_else_is_part_of_the_key(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    one, two = write(tmp_path / "a.jsonl", pairs(5)), write(tmp_path / "b.jsonl", pairs(5))
    data = Data(files=(one,))

    def key(data: Data = data, kinds: tuple[RecordKind, ...] = PAIRS, by: Renderer = renderer) -> str | None:
        return rows_key(data, kinds, by, {})

    found = [
        key(), key(Data(files=(two,))), key(Data(files=(one, two))), key(Data(files=(one,), eval_files=(two,))),
        key(Data(files=(Source(path=one, weight=2.0),))), key(kinds=("ranking",)),
        key(by=Renderer(T.byte_level(T.HEADERS))), key(by=Renderer(T.byte_level(T.CHATML), system="x")),
        key(by=Renderer(T.byte_level(T.CHATML, vocab_size=300))),
    ]  # fmt: skip
    monkeypatch.setattr(keys, "code_hash", lambda: "other code")
    found.append(key())
    monkeypatch.setattr(keys, "version", lambda name: "99")
    found.append(key())
    assert None not in found and len(set(found)) == len(found)


def test_a_template_that_writes_the_date_has_a_new_key_tomorrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = ["1 May"]
    by = Renderer(T.byte_level("{{- strftime_now('%d %B') + '\\n' }}" + T.CHATML))
    data = Data(files=(write(tmp_path / "a.jsonl", pairs(5)),))
    from transformers.utils import chat_template_utils

    class Clock:
        @staticmethod
        def now() -> Any:
            return Clock

        @staticmethod
        def strftime(format: str) -> str:
            return today[0]

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    first = rows_key(data, PAIRS, by, {})
    assert first == rows_key(data, PAIRS, by, {})
    today[0] = "2 May"
    assert first != rows_key(data, PAIRS, by, {})


def test_the_hash_of_the_code_is_of_its_files() -> None:
    keys.code_hash.cache_clear()
    assert keys.code_hash() == keys.code_hash()
    assert len(keys.code_hash()) == 64


def test_files_of_a_folder(tmp_path: Path, renderer: Renderer) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "a.jsonl", pairs(3))
    data = Data(files=(str(folder),))
    first = tokenise.tokenise(data, PAIRS, renderer)
    (folder / "README.md").write_text("hello")  # noted in the ledger, and so another one
    noted = tokenise.tokenise(data, PAIRS, renderer)
    write(folder / "b.jsonl", pairs(2, first=3))
    longer = tokenise.tokenise(data, PAIRS, renderer)
    again = tokenise.tokenise(data, PAIRS, renderer)
    assert [each.cached for each in (first, noted, longer, again)] == [False, False, False, True]
    assert [len(each.rows) for each in (first, noted, longer)] == [3, 3, 5]
    assert "README.md" in again.account["notes"][0]


def test_a_file_of_an_earlier_stage_counts_by_its_content(tmp_path: Path, renderer: Renderer) -> None:
    for name, first in (("one", 0), ("two", 9), ("three", 0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "pairs.jsonl", pairs(3, first=first))
    data = Data(files=("@prepare/pairs.jsonl",))
    made = [
        tokenise.tokenise(data, PAIRS, renderer, folders={"prepare": tmp_path / name})
        for name in ("one", "two", "three")
    ]  # fmt: skip
    assert [each.cached for each in made] == [False, False, True]
    with pytest.raises(DataError, match="no earlier stage"):
        tokenise.tokenise(data, PAIRS, renderer)


def test_a_hub_data_set_counts_by_the_files_it_is_kept_in(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets" / "pairs").mkdir(parents=True)
    write(tmp_path / "sets" / "pairs" / "train.jsonl", pairs(4))
    # A local folder in a hub data set's layout: read through `datasets`, as the hub's are.
    monkeypatch.setattr(
        keys, "locate", lambda source, data, folders: replace(_hub_place(), hub=str(tmp_path / "sets" / "pairs"))
    )
    first = rows_key(Data(files=("x/y",)), PAIRS, renderer, {})
    assert first is not None and first == rows_key(Data(files=("x/y",)), PAIRS, renderer, {})
    write(tmp_path / "sets" / "pairs" / "train.jsonl", pairs(4, first=1))
    assert first != rows_key(Data(files=("x/y",)), PAIRS, renderer, {})


def _hub_place() -> Any:
    from whet.data.locate import Place

    return Place(name="x/y", path=None, hub="x/y", format="auto")


def test_held_out_rows_and_their_account(tmp_path: Path, renderer: Renderer) -> None:
    train, held = write(tmp_path / "a.jsonl", pairs(20)), write(tmp_path / "b.jsonl", pairs(5, first=50))
    data = Data(files=(train,), eval_files=(held,), max_length=100)
    made, again = (tokenise.tokenise(data, PAIRS, renderer) for _ in range(2))
    assert again.cached and same(made, again)
    assert {row.origin.file for row in made.rows[: made.num_train]} == {train}
    assert {row.origin.file for row in made.rows[made.num_train :]} == {held}
    assert made.account["rows"] == {"train": made.num_train, "eval": len(made.rows) - made.num_train}
    assert made.account["eval"]["read"] == 5 and made.account["read"] == 20


def test_a_file_written_to_while_it_is_read_is_not_cached(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = tmp_path / "a.jsonl"
    data = Data(files=(write(path, pairs(3)),))
    part = tokenise.Job.part

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        write(path, pairs(4))
        return part(*args, **kwargs)

    monkeypatch.setattr(tokenise.Job, "part", interrupted)
    assert len(tokenise.tokenise(data, PAIRS, renderer).rows) == 3, "a block ends where it ended when it was cut"
    assert not list(cache.iterdir())


def test_nothing_to_train_on_is_not_cached(tmp_path: Path, renderer: Renderer, cache: Path) -> None:
    data = Data(files=(write(tmp_path / "a.jsonl", pairs(3)),), max_length=8)
    made = tokenise.tokenise(data, PAIRS, renderer)
    assert (made.num_train, len(made.rows), made.account["kept"]) == (0, 0, 0)
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data(files=(write(tmp_path / "a.jsonl", pairs(20)),), max_length=100)
    kept = tokenise.tokenise(data, PAIRS, renderer)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    store._say_once.cache_clear()
    made = [tokenise.tokenise(data, PAIRS, renderer) for _ in range(2)]
    assert all(same(each, kept) and not each.cached for each in made), "rows do without the cache"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"token cache: cannot write to {tmp_path / 'file'}")
    assert not list(tmp_path.glob("whet-tokens-*")), "no name leads to them"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="no room for the token ids"):
        tokenise.tokenise(data, PAIRS, renderer)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "num_processes", lambda: 2)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)


@pytest.mark.skipif(sys.platform != "linux", reason="rows are rendered in one process there")
@pytest.mark.parametrize("template", [T.CHATML, T.MODEL_ROLE])
def test_processes_make_the_same_rows_and_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_processes: None, template: str
) -> None:
    by = Renderer(T.byte_level(template))
    rows = pairs(300)
    for n in (5, 77, 78, 290):  # one template refuses two questions in a row
        rows[n]["prompt"] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    data = Data(files=(write(tmp_path / "a.jsonl", rows),), max_length=100, on_bad_row="drop")
    forked = tokenise.tokenise(data, PAIRS, by)
    monkeypatch.setattr(spread, "num_processes", lambda: 1)
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "other"))
    alone = tokenise.tokenise(data, PAIRS, by)
    assert not alone.cached and same(forked, alone)
    direct, ledger = directly(by, data, PAIRS)
    assert content(forked.rows) == plain(direct) and forked.summary == ledger.describe()


@pytest.mark.skipif(sys.platform != "linux", reason="rows are rendered in one process there")
def test_what_is_wrong_is_said_as_one_process_says_it(tmp_path: Path, two_processes: None) -> None:
    rows = pairs(100)
    for n in (60, 40):
        rows[n]["prompt"] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        tokenise.tokenise(Data(files=(path,)), PAIRS, Renderer(T.byte_level(T.MODEL_ROLE)))
    assert str(caught.value).startswith(f"{path}:41: messages: the chat template refuses these turns")
    assert (caught.value.file, caught.value.line) == (path, 41)
    with pytest.raises(ModelError, match="does not begin with its prompt"):
        tokenise.tokenise(Data(files=(path,)), PAIRS, Renderer(T.byte_level(T.OPENED_THOUGHT)))


def test_complaints_come_in_the_order_of_the_records() -> None:
    """A record whose answer cannot be tokenised comes before one that the template refuses."""
    by = Renderer(T.byte_level(T.MODEL_ROLE))
    good = (Message("user", "a"),)
    answer, odd = (Message("assistant", "b"),), (Message("assistant", "b<end_of_turn>c"),)
    fine = Preference(prompt=good, chosen=answer, rejected=odd)
    refused = Preference(prompt=(*good, *good), chosen=answer, rejected=answer)
    rows = render_records(by, [fine, refused], "error", Ledger(kept=2))
    assert isinstance(next(rows), RenderedGroup)
    with pytest.raises(DataError, match="refuses"):
        next(rows)


def test_conversations_in_several_rows_keep_together(tmp_path: Path) -> None:
    by = Renderer(T.byte_level(T.THINKING))
    turns = [
        {"role": role, "content": text}
        for text in ("one", "two")
        for role, text in (("user", f"{text}?"), ("assistant", f"<think>\nhm\n</think>\n\n{text}"))
    ]
    path = write(tmp_path / "a.jsonl", [{"messages": turns}] * (render.CHUNK + 2))
    made, again = (tokenise.tokenise(Data(files=(path,)), ("conversation",), by) for _ in range(2))
    assert again.cached and len(made.rows) == 2 * (render.CHUNK + 2)
    assert [row.last for row in again.rows if isinstance(row, Rendered)] == [False, True] * (render.CHUNK + 2)
    assert same(made, again)


def test_records_of_a_block_are_all_that_is_held(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows there are: no list of records, rows or texts is made of them."""
    data = Data(files=(write(tmp_path / "a.jsonl", pairs(1500)),), eval_fraction=0.1, num_samples=1200)
    monkeypatch.setattr(spread, "num_processes", lambda: 1)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8192)
    part, alive = tokenise.Job.part, list[int]()

    def counted(*args: Any, **kwargs: Any) -> Any:
        kinds = (Preference, RenderedGroup, Message)
        alive.append(sum(isinstance(each, kinds) for each in gc.get_objects()))
        return part(*args, **kwargs)

    monkeypatch.setattr(tokenise.Job, "part", counted)
    before = pulse.beats
    gc.freeze()  # what there is already is not looked at each time
    try:
        made = tokenise.tokenise(data, PAIRS, renderer)
    finally:
        gc.unfreeze()
    assert len(made.rows) == sum(made.account["rows"].values()) == made.account["kept"] and len(alive) > 30
    assert max(alive) < 100
    assert pulse.beats - before > len(alive), "a watchdog sees that it gets on"


def test_held_out_rows_of_blocks_are_those_of_the_whole(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pairs(200)
    for n in range(50, 100):
        rows[n]["prompt"] = rows[n - 50]["prompt"]
    data = Data(files=(write(tmp_path / "a.jsonl", rows),), eval_fraction=0.2, max_length=100)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)
    made = tokenise.tokenise(data, PAIRS, renderer)
    records, _ = read_records(data, PAIRS)
    kept = {row.origin for row in made.rows}
    train, held = split_records([record for record in records if record.origin in kept], 0.2, data.seed)
    assert [row.origin for row in made.rows[: made.num_train]] == [record.origin for record in train]
    assert [row.origin for row in made.rows[made.num_train :]] == [record.origin for record in held]
    assert len(held) > 20 and len(kept) < 200


def test_rows_are_held_out_of_those_that_are_left(tmp_path: Path, renderer: Renderer) -> None:
    """Which row is too long to be used decides nothing, and where none could be held out that is said."""
    rows = [{"prompt": "q" * n, "chosen": "a", "rejected": "b"} for n in (1, 2, 900)]
    for seed in range(5):
        data = Data(files=(write(tmp_path / "a.jsonl", rows),), eval_fraction=0.5, seed=seed, max_length=99)
        assert tokenise.tokenise(data, PAIRS, renderer).account["rows"] == {"train": 1, "eval": 1}
    with pytest.raises(DataError, match=r"eval_fraction: all rows have the same prompt.* \(found 1 row left\)"):
        data = Data(files=(write(tmp_path / "b.jsonl", rows[1:]),), eval_fraction=0.5, max_length=99)
        tokenise.tokenise(data, PAIRS, renderer)
    held = write(tmp_path / "c.jsonl", rows[2:])
    with pytest.raises(DataError, match=r"c\.jsonl: no rows left \(found 1 read, 0 kept"):
        data = Data(files=(write(tmp_path / "a.jsonl", rows),), eval_files=(held,), max_length=99)
        tokenise.tokenise(data, PAIRS, renderer)


def test_rows_are_made_where_there_is_no_home(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_CACHE", "~nouser/cache")
    assert len(tokenise.tokenise(Data(files=(write(tmp_path / "a.jsonl", pairs(3)),)), PAIRS, renderer).rows) == 3
