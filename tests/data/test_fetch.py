"""`whet data fetch` on local copies with the columns of the hub's data sets, and without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whet.cli import _main
from whet.config.data import Data
from whet.data.fetch import SETS, fetch, revision_of
from whet.data.formats import KIND
from whet.data.sources import read_records
from whet.errors import DataError
from whet.runs.files import read_json, read_jsonl

NUM = 12


def openorca(n: int) -> dict[str, Any]:
    system = "You are an AI assistant." if n % 2 else ""
    question, response = f"What is {n} plus 1?", f"It is {n + 1}."
    return {"id": f"flan.{n}", "system_prompt": system, "question": question, "response": response}


def pku(n: int) -> dict[str, Any]:
    return {
        "prompt": f"How do I open lock {n}?", "response_0": f"With key {n}.", "response_1": f"Break it, {n}.",
        "prompt_source": "new", "response_0_source": "Alpaca-7B", "response_1_source": "Alpaca-7B",
        "is_response_0_safe": True, "is_response_1_safe": False,
        "response_0_harm_category": {"Physical Harm": False}, "response_1_harm_category": {"Physical Harm": True},
        "response_0_severity_level": 0, "response_1_severity_level": 1,
        "better_response_id": n % 2, "safer_response_id": 0, "response_0_sha256": "a", "response_1_sha256": "b",
    }  # fmt: skip


def ultrafeedback(n: int) -> dict[str, Any]:
    def completion(score: float, text: str) -> dict[str, Any]:
        rated = {"Rating": "4", "Rationale": "Clear."}
        aspects = ("helpfulness", "honesty", "truthfulness", "instruction_following")
        return {
            "annotations": dict.fromkeys(aspects, rated),
            "custom_system_prompt": "Be helpful.", "model": "alpaca-7b", "principle": "helpfulness", "response": text,
            "critique": "Fine.", "overall_score": score, "fine-grained_score": score / 2,
        }  # fmt: skip

    return {
        "source": "sharegpt", "instruction": f"Name {n} birds.", "models": ["alpaca-7b", "bard"],
        "completions": [completion(8.0, f"{n} birds."), completion(3.0, "No.")],
        "correct_answers": ["None"], "incorrect_answers": ["None"],
    }  # fmt: skip


def hh(n: int) -> dict[str, Any]:
    asked = f"\n\nHuman: Hello {n}.\n\nAssistant: Hi.\n\nHuman: Name a bird.\n\nAssistant:"
    return {"chosen": f"{asked} A robin.", "rejected": f"{asked} A stone."}


def alpaca(n: int) -> dict[str, Any]:
    return {"instruction": "Add one.", "input": str(n), "output": str(n + 1), "text": f"Below is ... {n}"}


def sharegpt(n: int) -> dict[str, Any]:
    turns = [("human", f"Hello {n}"), ("gpt", "Hi."), ("human", "Name a bird."), ("gpt", "A robin.")]
    return {"id": f"x{n}_0", "conversations": [{"from": who, "value": text} for who, text in turns]}


def gsm8k(n: int) -> dict[str, Any]:
    return {"question": f"What is {n} plus 1?", "answer": f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "openorca": openorca, "pku-saferlhf": pku, "ultrafeedback": ultrafeedback, "hh-rlhf": hh, "alpaca": alpaca,
    "sharegpt": sharegpt, "gsm8k": gsm8k,
}  # fmt: skip


def copy_of(name: str, folder: Path, rows: list[dict[str, Any]] | None = None) -> str:
    """A local copy in the hub's layout: most sets as JSON lines, two as Parquet, ShareGPT as the one file it is."""
    folder.mkdir(parents=True)
    values = rows if rows is not None else [ROWS[name](n) for n in range(NUM)]
    if name in ("openorca", "gsm8k"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        place = folder / "main" if name == "gsm8k" else folder
        place.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(values), place / "train-00000-of-00001.parquet")
    elif name == "sharegpt":
        (folder / str(SETS[name].data_files)).write_text(json.dumps(values))
        (folder / "other.json").write_text("[]")
    else:
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    return str(folder)


def read(file: Path) -> list[dict[str, Any]]:
    return read_json(file) if file.suffix == ".json" else read_jsonl(file)


@pytest.mark.parametrize("name", SETS)
def test_every_set_becomes_a_file_that_plans_read(name: str, tmp_path: Path) -> None:
    copy = copy_of(name, tmp_path / "copy")
    out = tmp_path / Path(SETS[name].out).name
    fetched = fetch(name, num=5, seed=1, out=out, source=copy)
    assert fetched.records == 5 and fetched.rows == len(read(out)) == (10 if name == "ultrafeedback" else 5)
    records, ledger = read_records(Data(files=(str(out),)), (KIND[SETS[name].format],))
    assert ledger.dropped == {} and len(records) == fetched.rows
    account = read_json(tmp_path / f"{out.name}.source.json")
    assert (account["hub"], account["num"], account["seed"], account["records"]) == (SETS[name].hub, 5, 1, 5)


def test_forms_are_those_of_the_pipelines_that_read_them(tmp_path: Path) -> None:
    rows = {}
    for name in ("openorca", "pku-saferlhf", "ultrafeedback", "hh-rlhf"):
        out = tmp_path / Path(SETS[name].out).name
        fetch(name, num=None, seed=0, out=out, source=copy_of(name, tmp_path / name))
        rows[name] = read(out)
    assert rows["openorca"][0] == {"instruction": "What is 0 plus 1?", "input": "", "output": "It is 1."}
    assert rows["openorca"][1]["system"] == "You are an AI assistant."
    assert rows["pku-saferlhf"][1] == {
        "prompt": "How do I open lock 1?", "chosen": "Break it, 1.", "rejected": "With key 1.",
    }  # fmt: skip
    assert rows["ultrafeedback"][:2] == [
        {"prompt": "Name 0 birds.", "response": "0 birds.", "reward": 8.0},
        {"prompt": "Name 0 birds.", "response": "No.", "reward": 3.0},
    ]
    assert [turn["role"] for turn in rows["hh-rlhf"][0]["prompt"]] == ["user", "assistant", "user"]
    assert rows["hh-rlhf"][0]["chosen"] == "A robin."


def test_the_seed_decides_what_is_taken(tmp_path: Path) -> None:
    copy = copy_of("alpaca", tmp_path / "copy")
    taken = []
    for number, seed in enumerate((1, 1, 2)):
        fetch("alpaca", num=4, seed=seed, out=tmp_path / f"{number}.jsonl", source=copy)
        taken.append(read_jsonl(tmp_path / f"{number}.jsonl"))
    assert taken[0] == taken[1] != taken[2]


def test_rows_that_cannot_be_used_are_counted_and_others_taken(tmp_path: Path) -> None:
    rows = [pku(n) | ({"better_response_id": -1} if n < 3 else {}) for n in range(NUM)]
    copy = copy_of("pku", tmp_path / "copy", rows)
    fetched = fetch("pku-saferlhf", num=NUM, seed=0, out=tmp_path / "a.jsonl", source=copy)
    assert fetched.records == NUM - 3 and fetched.skipped == {"is neither 0 nor 1": 3}
    assert "(left out: 3: is neither 0 nor 1)" in fetched.describe()
    account = read_json(tmp_path / "a.jsonl.source.json")
    assert account["left_out"] == fetched.skipped and "better_response_id" in account["examples"]["is neither 0 nor 1"]


def test_nothing_usable_leaves_no_file(tmp_path: Path) -> None:
    copy = copy_of("pku", tmp_path / "copy", [pku(0) | {"better_response_id": 7}])
    with pytest.raises(DataError, match=r"no usable rows.*is neither 0 nor 1"):
        fetch("pku-saferlhf", num=5, seed=0, out=tmp_path / "a.jsonl", source=copy)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_hub_out_of_reach_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert _main(["data", "fetch", "openorca", "--num", "5", "--out", str(tmp_path / "a.json")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith("error: Open-Orca/OpenOrca: cannot be had from the hub") and "--from FOLDER" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["openorka"], "no such data set (found 'openorka'); did you mean openorca?"),
        (["alpaca", "--out", "there.json"], "there.json: exists already"),
        (["alpaca", "--out", "x" * 300], "cannot write (found File name too long)"),
        (["alpaca", "--out", "rows.csv"], "rows.csv: what is written are JSON lines"),
        (["alpaca", "--from", "nowhere", "--out", "a.json"], "--from: no such folder (found nowhere)"),
        (["alpaca", "--from", "copy", "--split", "tset", "--out", "a.json"], "copy: cannot be read as a local copy"),
        (["sharegpt", "--from", "copy", "--out", "a.json"], "copy: cannot be read as a local copy"),
    ],
)
def test_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("[]")
    Path("copy").mkdir()
    Path("copy/train.jsonl").write_text(json.dumps({"instruction": "a", "input": "", "output": "b"}) + "\n")
    assert _main(["data", "fetch", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_commit_is_asked_for_and_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    class Api:
        def dataset_info(self, hub: str, *, revision: str | None, timeout: float) -> Any:
            return type("Info", (), {"sha": f"{hub}@{revision or 'main'}"})

    asked: list[dict[str, Any]] = []

    def load(place: str, name: str | None, **keys: Any) -> Any:
        asked.append({"place": place, "name": name, **keys})
        return datasets.IterableDataset.from_generator(lambda: iter([gsm8k(n) for n in range(3)]))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert revision_of("a/b", "v1") == "a/b@v1"
    fetch("gsm8k", num=2, seed=0, out=tmp_path / "a.jsonl", split="test")
    assert read_json(tmp_path / "a.jsonl.source.json")["revision"] == "openai/gsm8k@main"
    (call,) = asked
    assert call == {
        "place": "openai/gsm8k", "name": "main", "split": "test", "data_files": None,
        "revision": "openai/gsm8k@main", "streaming": True,
    }  # fmt: skip
