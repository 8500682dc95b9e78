# ruff: noqa: E501  rows are easier to read on one line
"""From files of a plan to records: the account adds up, choices are repeatable, names that do not exist are explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.config.data import Data, Source
from whet.data.detect import LEVELS
from whet.data.ledger import Ledger
from whet.data.lines import ranges
from whet.data.sources import read_records, split_records, stream_records
from whet.data.split import prompt_key
from whet.errors import ConfigError, DataError
from whet.schema.records import Conversation, Message, Origin, Preference, Prompt, Record, RecordKind


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def alpaca(*names: str) -> list[dict[str, str]]:
    return [{"instruction": name, "output": name.upper()} for name in names]


def words(records: list[Record]) -> list[str]:
    return [record.messages[0].text for record in records if isinstance(record, Conversation | Prompt)]


REAL: list[tuple[str, str, RecordKind, int]] = [
    ("alpaca_en_demo.json", "alpaca", "conversation", 999),
    ("alpaca_zh_demo.json", "alpaca", "conversation", 1000),
    ("dpo_en_demo.json", "preference", "preference", 300),
    ("glaive_toolcall_en_demo.json", "sharegpt", "conversation", 300),
    ("gsm8k_train.jsonl", "gsm8k", "conversation", 7473),
    ("kto_en_demo.json", "kto", "rating", 300),
    ("mllm_demo.json", "messages", "conversation", 6),
    ("self_instruct_seed_tasks.jsonl", "self_instruct", "conversation", 175),
]


@pytest.mark.parametrize(("name", "format", "kind", "num"), REAL)
def test_real_files_are_read_whole(real_data: Path, name: str, format: str, kind: RecordKind, num: int) -> None:
    path = str(real_data / name)
    records, ledger = read_records(Data(files=(path,)), (kind,))
    assert (len(records), ledger.read, ledger.kept, ledger.formats) == (num, num, num, {path: format})
    text = (real_data / name).read_text(encoding="utf-8").split("\n")
    assert all(text[record.origin.line - 1].strip().startswith("{") for record in records)
    prompts, again = read_records(Data(files=(path,)), ("prompt",))
    assert len(prompts) == num == again.kept


def test_real_pictures_stand_in_the_text(real_data: Path) -> None:
    records, _ = read_records(Data(files=(str(real_data / "mllm_demo.json"),)), ("conversation",))
    assert all(any(not isinstance(message.content, str) for message in r.messages) for r in records if isinstance(r, Conversation))


STREAMED: list[dict[str, Any]] = [
    {}, {"num_samples": 3}, {"files": [{"path": "a.jsonl", "weight": 2.0}, "b.csv"]}, {"on_bad_row": "drop"},
    {"files": [{"path": "a.jsonl", "num_samples": 2}, "b.csv"]},
]  # fmt: skip


@pytest.mark.parametrize("section", STREAMED, ids=str)
def test_streamed_records_are_those_read_at_once(in_tmp: Path, section: dict[str, Any]) -> None:
    write(in_tmp / "a.jsonl", [*alpaca("a", "b", "c", "d"), *([{"instruction": 7, "output": "x"}] if "on_bad_row" in section else [])])
    (in_tmp / "b.csv").write_text("instruction,output\ne,E\nf,F\n")
    data, ledger = Data.model_validate({"files": ["a.jsonl", "b.csv"], **section}), Ledger()
    stream = stream_records(data, ("conversation",), ledger)
    first = next(stream)
    if not section:
        assert ledger.kept == 1, "the second row is not read yet"
    expected, whole = read_records(data, ("conversation",))
    assert [first, *stream] == expected and ledger.to_json() == whole.to_json()


def test_a_stream_without_a_row_left_says_why(in_tmp: Path) -> None:
    write(in_tmp / "a.jsonl", [{"instruction": "b", "output": None}])
    with pytest.raises(DataError, match="no rows left"):
        list(stream_records(Data(files=("a.jsonl",), format="alpaca", on_bad_row="drop"), ("conversation",), Ledger()))


def test_bad_rows_stop_or_are_dropped_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [*alpaca("a"), {"instruction": "b", "output": None}, *alpaca("c")])
    with path.open("a") as handle:
        handle.write('{"instruction": \n')
    with pytest.raises(DataError, match=rf"{path}:2: output: is null; fill it in"):
        read_records(Data(files=(str(path),)), ("conversation",))
    records, ledger = read_records(Data(files=(str(path),), on_bad_row="drop"), ("conversation",))
    assert words(records) == ["a", "c"]
    assert (ledger.read, ledger.kept) == (4, 2)
    dropped = ledger.to_json()["dropped"]
    assert dropped["output is null"]["lines"] == {str(path): "2"}
    assert dropped["broken JSON"]["lines"] == {str(path): "4"}
    assert f"{path}:4" in dropped["broken JSON"]["example"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"instruction": "a", "output": ""}])
    with pytest.raises(DataError, match=r"no rows left .*the first complaint was: .*a\.jsonl:1: output: is empty"):
        read_records(Data(files=(path,), format="alpaca", on_bad_row="drop"), ("conversation",))
    with pytest.raises(ConfigError, match=r"data\.files: is empty"):
        read_records(Data(), ("conversation",))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}])
    with pytest.raises(DataError, match=r"holds prompts without answers, but conversations to learn from are needed"):
        read_records(Data(files=(path,)), ("conversation",))


def test_a_file_that_could_serve_by_another_format(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b", "score": 3}])
    with pytest.raises(DataError, match=r"answers with a number, but conversations .*data\.format=prompt_completion"):
        read_records(Data(files=(path,)), ("conversation",))
    assert len(read_records(Data(files=(path,), format="prompt_completion"), ("conversation",))[0]) == 1


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"frage": "a", "besser": "b", "schlechter": "c", "nr": 1}])
    columns = {"prompt": "frage", "chosen": "besser", "rejected": "schlechter"}
    (record,), _ = read_records(Data(files=(path,), columns=columns), ("preference",))
    assert isinstance(record, Preference) and record.chosen[0].text == "b" and record.columns == {"nr": 1}
    with pytest.raises(DataError, match=r"no row has the column that data\.columns names .*did you mean 'besser'"):
        read_records(Data(files=(path,), columns={**columns, "chosen": "beser"}), ("preference",))
    with pytest.raises(ConfigError, match=r"data\.columns\.promt: unknown column of ours; did you mean 'prompt'"):
        read_records(Data(files=(path,), columns={"promt": "frage"}), ("preference",))


def test_a_mapped_column_must_be_there_and_what_it_replaces_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"instruction": "NATIVE", "output": "a", "frage": "MINE"}])
    complaint = r"a\.jsonl: instruction: no row has the column that data\.columns names \(found 'nope'\)"
    with pytest.raises(DataError, match=complaint):
        read_records(Data(files=(path,), columns={"instruction": "nope"}), ("conversation",))
    (record,), _ = read_records(Data(files=(path,), columns={"instruction": "frage"}), ("conversation",))
    assert words([record]) == ["MINE"] and record.columns == {"original_instruction": "NATIVE"}
    swapped = {"instruction": "output", "output": "instruction"}
    (record,), _ = read_records(Data(files=(path,), columns=swapped), ("conversation",))
    assert words([record]) == ["a"] and record.columns == {"frage": "MINE"}


GRADED = [
    {"prompt": "q", "answer": "good", "rejected": "bad"}, {"prompt": "q", "completion": "bad", "label": False},
    {"prompt": "q", "response": "bad", "reward": -5}, {"prompt": "q", "responses": ["a"], "weights": [1]},
    {"prompt": "q", "responses": ["a"], "rankings": [1]}, {"instruction": "q", "completions": [{"response": "a"}]},
    {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
]  # fmt: skip
FORMATS = ("preference", "kto", "scored", "weighted", "ranking", "ultrafeedback", "pku", "hh")


@pytest.mark.parametrize(("row", "format"), [*zip(GRADED, FORMATS, strict=True)], ids=FORMATS)
def test_graded_answers_far_down_a_file_are_not_learnt(tmp_path: Path, row: dict[str, Any], format: str) -> None:
    assert set(FORMATS) == set(LEVELS[0])
    path = write(tmp_path / "a.jsonl", [*({"prompt": f"q{n}", "completion": "a"} for n in range(100)), row])
    with pytest.raises(DataError, match=rf"a\.jsonl:101: a {format} row among prompt_completion rows .*data\.format=prompt_c"):
        read_records(Data(files=(path,)), ("conversation",))
    _, ledger = read_records(Data(files=(path,), on_bad_row="drop"), ("conversation",))
    assert (ledger.kept, ledger.num_dropped) == (100, 1)


def test_a_format_that_was_given_holds_for_every_row(tmp_path: Path) -> None:
    rows = [*({"prompt": f"q{n}", "completion": "a"} for n in range(100)), GRADED[1]]
    data = Data(files=(write(tmp_path / "a.jsonl", rows),), format="prompt_completion")
    assert len(read_records(data, ("conversation",))[0]) == 101


def test_sound_rows_behind_many_broken_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{broken\n" * 250 + '{"prompt": "a", "completion": "b"}\n' * 3)
    records, ledger = read_records(Data(files=(str(path),), on_bad_row="drop"), ("conversation",))
    assert (len(records), ledger.num_dropped, ledger.formats) == (3, 250, {str(path): "prompt_completion"})


def test_plain_lines_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    records, _ = read_records(Data(files=(str(tmp_path / "a.txt"),)), ("prompt",))
    assert words(records) == ["one", "two"] and records[1].origin.line == 3


def test_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", alpaca("b"))
    write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "A"}])
    (tmp_path / "README.md").write_text("x")
    records, ledger = read_records(Data(files=(str(tmp_path),)), ("conversation",))
    assert words(records) == ["a", "b"]
    assert records[1].origin == Origin(file=f"{tmp_path}/b.jsonl", line=1)
    assert any("README.md" in note for note in ledger.notes)


def test_a_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"no data files in this folder .*it needs files named"):
        read_records(Data(files=(str(tmp_path),)), ("conversation",))
    write(tmp_path / "train" / "a.jsonl", alpaca("a"))
    with pytest.raises(DataError, match="its folder train has some"):
        read_records(Data(files=(str(tmp_path),)), ("conversation",))


def test_names_that_do_not_exist(tmp_path: Path, in_tmp: Path) -> None:
    write(tmp_path / "train.jsonl", alpaca("a"))
    (tmp_path / "data").mkdir()
    for name, complaint in {
        "trian.jsonl": "did you mean train.jsonl?",
        "nowhere/a.jsonl": "the folder nowhere does not exist either",
        "data/x": "relative paths start from",
        "@sft/a.jsonl": "did you mean @sft-1/a.jsonl?",
        "@sft-1": "names a stage but no file of it",
        "@sft-1/b.jsonl": "@sft-1/b.jsonl: no such file",
    }.items():
        with pytest.raises(DataError) as caught:
            read_records(Data(files=(name,)), ("conversation",), folders={"sft-1": tmp_path})
        assert complaint in str(caught.value)


def test_paths_that_cannot_be_reached(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (in_tmp / "loop.jsonl").symlink_to("loop.jsonl")
    (in_tmp / "locked").mkdir()
    real = Path.iterdir

    def refused(self: Path) -> Any:
        if self.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    for name, complaint in {
        "x" * 300: "cannot be reached (found File name too long)",
        "~nouser/x.jsonl": "~nouser/x.jsonl: names no home",
        "loop.jsonl": "loop.jsonl: is a link that leads to no file (found loop.jsonl)",
        "locked": "locked: cannot be reached (found Permission denied)",
        ".": ".: no data files in this folder",
    }.items():
        with pytest.raises(DataError) as caught:
            read_records(Data(files=(name,)), ("conversation",))
        assert complaint in str(caught.value)
    for folder in ("x" * 300, "~nouser"):
        with pytest.raises(DataError, match=r"data\.image_folder: (cannot be reached|names no home)"):
            read_records(Data(files=(write(in_tmp / "a.jsonl", alpaca("a")),), image_folder=folder), ("conversation",))


def test_files_of_earlier_stages_keep_their_short_name(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", alpaca("a"))
    records, _ = read_records(Data(files=("@make/a.jsonl",)), ("conversation",), folders={"make": tmp_path})
    assert str(records[0].origin) == "@make/a.jsonl:1"


def test_num_samples_is_repeatable_and_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", alpaca(*map(str, range(50))))
    first, ledger = read_records(Data(files=(path,), num_samples=10, seed=1), ("conversation",))
    again, _ = read_records(Data(files=(path,), num_samples=10, seed=1), ("conversation",))
    other, _ = read_records(Data(files=(path,), num_samples=10, seed=2), ("conversation",))
    assert words(first) == words(again) != words(other)
    assert [record.origin.line for record in first] == sorted(record.origin.line for record in first)
    assert (ledger.read, ledger.kept, ledger.num_dropped) == (50, 10, 40)
    assert len(read_records(Data(files=(path,), num_samples=99), ("conversation",))[0]) == 50


def test_mixtures(tmp_path: Path) -> None:
    many = write(tmp_path / "many.jsonl", alpaca(*(f"m{i}" for i in range(30))))
    few = write(tmp_path / "few.jsonl", alpaca(*(f"f{i}" for i in range(6))))
    equal, _ = read_records(Data(files=(many, few)), ("conversation",))
    assert len(equal) == 36
    records, ledger = read_records(Data(files=(Source(path=many, weight=2), Source(path=few, weight=1))), ("conversation",))
    assert sum(word.startswith("m") for word in words(records)) == 12
    assert sum(word.startswith("f") for word in words(records)) == 6
    assert (ledger.read, ledger.kept) == (36, 18)
    (one,), _ = read_records(Data(files=(Source(path=few, num_samples=1),)), ("conversation",))
    assert words([one])[0].startswith("f")


def conversation(prompt: str, answer: str = "x") -> Conversation:
    return Conversation(messages=(Message("user", prompt), Message("assistant", answer)))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 9), min_size=2), st.floats(0.01, 0.9), st.integers(0, 3))
def test_split_keeps_equal_prompts_together(prompts: list[int], fraction: float, seed: int) -> None:
    records: list[Record] = [conversation(str(prompt), str(i)) for i, prompt in enumerate(prompts)]
    if len(set(prompts)) == 1:
        with pytest.raises(DataError, match="same prompt"):
            split_records(records, fraction, seed)
        return
    train, held = split_records(records, fraction, seed)
    assert train and held
    assert [record for record in records if record in train or record in held] == records
    assert len(train) + len(held) == len(records)
    assert not {prompt_key(record) for record in train} & {prompt_key(record) for record in held}


def test_split_has_the_size_asked_and_does_not_depend_on_order() -> None:
    records: list[Record] = [conversation(str(i)) for i in range(200)]
    train, held = split_records(records, 0.1, 42)
    assert (len(train), len(held)) == (180, 20)
    assert {prompt_key(r) for r in split_records(records[::-1], 0.1, 42)[1]} == {prompt_key(r) for r in held}
    assert split_records(records, 0.0, 42) == (records, [])
    assert split_records(records, 0.1, 43)[1] != held


def test_ledger_adds_up() -> None:
    ledger, other = Ledger(), Ledger()
    for line in range(1, 8):
        ledger.keep(Origin(file="a", line=line))
    ledger.drop("is empty", Origin(file="a", line=2))
    ledger.drop("is empty", Origin(file="a", line=3))
    ledger.truncate(Origin(file="a", line=5))
    other.refuse_error(DataError("is null", file="b", line=1, field="messages[3].content"))
    ledger.merge(other)
    assert ledger.describe() == "8 read, 5 kept, 1 truncated, 3 dropped (2 is empty, 1 messages[].content is null)"
    assert ledger.to_json()["dropped"]["is empty"] == {"count": 2, "lines": {"a": "2-3"}}
    assert ranges([9, 3, 7, 8, 8]) == "3,7-9"


def registry(tmp_path: Path, **entries: Any) -> str:
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(entries))
    return str(path)


def test_registry(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", alpaca("a", "b"))
    write(tmp_path / "s.jsonl", [{"turns": [{"wer": "mensch", "was": "q"}, {"wer": "gpt", "was": "r"}], "system": "S"}])
    write(tmp_path / "p.jsonl", [{"instruction": "q", "input": "i", "good": "g", "bad": "b"}])
    write(tmp_path / "k.jsonl", [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}], "label": False}])
    path = registry(
        tmp_path,
        plain={"file_name": "a.jsonl", "num_samples": 1},
        tagged={
            "file_name": "s.jsonl", "formatting": "sharegpt", "columns": {"messages": "turns"},
            "tags": {"role_tag": "wer", "content_tag": "was", "user_tag": "mensch"},
        },
        pairs={"file_name": "p.jsonl", "ranking": True, "columns": {"chosen": "good", "rejected": "bad"}},
        labels={"file_name": "k.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}},
    )  # fmt: skip
    records, _ = read_records(Data(files=("plain", "tagged"), registry=path), ("conversation",))
    assert len(records) == 2 and isinstance(records[1], Conversation)
    assert [(m.role, m.text) for m in records[1].messages] == [("system", "S"), ("user", "q"), ("assistant", "r")]
    (pair,), _ = read_records(Data(files=("pairs",), registry=path), ("preference",))
    assert isinstance(pair, Preference) and pair.prompt[0].text == "q\ni" and pair.chosen[0].text == "g"
    (rating,), _ = read_records(Data(files=("labels",), registry=path), ("rating",))
    assert rating.origin.file == str(tmp_path / "k.jsonl")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"file_name": "a.jsonl", "format": "sharegpt"}, "[x]: format: unknown key; did you mean 'formatting'?"),
        ({"file_name": "a.jsonl", "columns": {"promt": "q"}}, "columns.promt: unknown key; did you mean 'prompt'?"),
        ({"file_name": "a.jsonl", "tags": {"rolle": "q"}}, "tags.rolle: unknown key"),
        ({"file_name": "a.jsonl", "formatting": "sharegtp"}, "unknown formatting (found 'sharegtp'); use sharegpt"),
        ({"script_url": "x"}, "script_url: is not supported"),
        ({"ms_hub_url": "x/y"}, "ms_hub_url: only the Hugging Face hub can be reached"),
        ({}, "file_name: names no data"),
        ({"file_name": "b.jsonl"}, "b.jsonl: no such file; did you mean"),
        ({"file_name": "a.jsonl", "num_samples": 0}, "num_samples: is not a positive number"),
        ({"hf_hub_url": 5}, "[x]: hf_hub_url: is a number, not a text (found 5)"),
        ({"file_name": "a.jsonl", "tags": {"role_tag": ["a"]}}, "[x]: tags.role_tag: is a list, not a text"),
        ({"file_name": "a.jsonl", "columns": {"prompt": 5}}, "[x]: columns.prompt: is a number, not a text"),
    ],
)
def test_registry_mistakes(tmp_path: Path, entry: dict[str, Any], complaint: str) -> None:
    write(tmp_path / "a.jsonl", alpaca("a"))
    with pytest.raises(DataError) as caught:
        read_records(Data(files=("x",), registry=registry(tmp_path, x=entry)), ("conversation",))
    assert complaint in str(caught.value)


def test_registry_names_are_suggested(tmp_path: Path, in_tmp: Path) -> None:
    path = registry(tmp_path, alpaca_en={"file_name": "a.jsonl"})
    with pytest.raises(DataError, match="did you mean alpaca_en of the registry"):
        read_records(Data(files=("alpaca_ne",), registry=path), ("conversation",))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json:1: broken JSON"):
        read_records(Data(files=("x",), registry=str(tmp_path / "broken.json")), ("conversation",))


def test_what_fetching_writes_beside_a_file_is_no_data(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", alpaca("a", "b"))
    (tmp_path / "a.jsonl.source.json").write_text(json.dumps({"dataset": "openorca", "revision": "abc"}))
    records, _ = read_records(Data(files=(str(tmp_path),)), ("conversation",))
    assert len(records) == 2
