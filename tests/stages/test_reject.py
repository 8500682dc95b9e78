"""reject end to end: its files, its numbers, the parts a user replaces, what a kill leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from whet.config.data import Data
from whet.config.load import load_plan
from whet.config.model import Model
from whet.config.stage import RejectStage
from whet.data.sources import read_records
from whet.errors import ConfigError, DataError, RunError, UserError
from whet.experience.reject_files import FILES
from whet.runs.files import read_json, read_jsonl
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef, StageResult
from whet.schema.records import RecordKind
from whet.stages import reject
from whet.stages.context import Context

NUM = 12
FUNCTIONS = '''
import json, pathlib

def generate(requests):
    """Right by the number of the sample; prompt 3 never is, prompt 4 always. Counts what it was asked."""
    with open(__file__ + ".asked", "a") as file:
        file.writelines(request["key"] + "\\n" for request in requests)
    for request in requests:
        n, sample = int(request["messages"][-1]["content"].split()[3]), int(request["key"].rpartition("#")[2])
        if n == 5 and sample == 0:
            yield None
        elif n == 6:
            yield {"text": f"{2 * n}, and so on", "finish_reason": "length"}
        else:
            right = n == 4 or (n != 3 and sample % 2 == 0)
            yield f"I think: {2 * n if right else 2 * n + sample + 1}"

def read(files):
    for n in range(3):
        yield {"a": n, "b": 1, "want": str(n + 1)}

def format(row):
    return {"prompt": f"How much is {row['a']} plus {row['b']}?", "reference": row["want"], "source": "made"}

def as_text(row):
    return f"Say {row['a']}."

def broken(row):
    return row["absent"]

def save(rows, folder):
    kept = [[row["key"], [answer["fate"] for answer in row["answers"]]] for row in rows]
    pathlib.Path(folder, "mine.json").write_text(json.dumps(kept))

def early(rows, folder):
    next(rows)

def score(prompt, completion, reference): return float(reference in completion) / 2
'''


def write_inputs(folder: Path, num: int = NUM) -> Path:
    rows = [{"prompt": f"How much is {n} plus {n}?", "reference": str(2 * n), "task": "sum"} for n in range(num)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(FUNCTIONS)
    return folder


def stage(folder: Path, **sections: Any) -> RejectStage:
    """Rejection sampling from the function `generate`, unless told otherwise."""
    return RejectStage.model_validate(
        {
            "name": "reject",
            "data": {"files": [str(folder / "prompts.jsonl")]},
            "rollout": {"group_size": 4, "batch_size": 3, "max_new_tokens": 12, "temperature": 1.0},
            "reward": {"type": "numeric"},
            "functions": {"generate": f"{folder / 'mine.py'}:generate"},
            "num_logged": 3,
        }
        | sections
    )


def native(folder: Path, **sections: Any) -> RejectStage:
    """The tiny model answers; what it says is right where there is a vowel in it."""
    return stage(folder, functions={}, reward={"type": "regex", "pattern": ".*[aeiou].*"}, **sections)


def run(config: RejectStage, checkpoint: Path, folder: Path) -> StageResult:
    ref, model = ModelRef(path=str(checkpoint)), Model(path=str(checkpoint), device="cpu")
    context = Context(
        model=model, start=ref, models={"base": ref}, paths=StagePaths(folder), folders={}, stage=config
    )
    return reject.run(config, context)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_and_numbers(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(stage(write_inputs(tmp_path)), tiny_checkpoint, tmp_path / "out")
    rows = {name: read_jsonl(tmp_path / "out" / name) for name in FILES}
    metrics, found = result.metrics, read_json(tmp_path / "out" / "reject.json")
    # Samples 0 and 2 are right and say the same, 1 and 3 are wrong; prompts 3, 4, 5 and 6 are special.
    assert metrics["num_prompts"] == NUM and metrics["num_answers"] == 4 * NUM == sum(found["fates"].values())
    assert (metrics["num_failed"], metrics["num_cut"], metrics["num_unsolved"]) == (1, 4, 1)
    assert metrics["num_accepted"] == len(rows["accepted.jsonl"]) == NUM - 2, "none of prompt 3, and 6 was cut"
    assert metrics["num_rejected"] == len(rows["rejected.jsonl"]) == 2 * (NUM - 3) + 4, "3 has 4, 4 and 6 none"
    assert [row["prompt"] for row in rows["unsolved.jsonl"]] == ["How much is 3 plus 3?"]
    assert len(rows["solved.jsonl"]) == NUM - 1 == metrics["num_solved"]
    shares = [0.0 if n == 3 else 1.0 if n in (4, 6) else 1 / 3 if n == 5 else 0.5 for n in range(NUM)]
    assert metrics["accept_rate"] == metrics["pass_at_1"] == pytest.approx(sum(shares) / NUM)
    assert metrics["mean_length_right"] > 0 < metrics["mean_length_wrong"]
    assert metrics["accept_rate_low"] < metrics["accept_rate"] < metrics["accept_rate_high"]
    assert metrics["pass_at_4"] == pytest.approx((NUM - 2) / (NUM - 1)), "of prompt 5 three answers have a score"
    assert found["reasons"] == {"no answer: none was given": 1}
    assert found["rows"] == {name: len(rows[name]) for name in FILES}
    assert [(one["file"], one["prompts"], one["solved"]) for one in found["files"]] == [
        (str(tmp_path / "prompts.jsonl"), NUM, NUM - 1)
    ]
    first = rows["accepted.jsonl"][0]
    assert first["messages"] == [
        {"role": "user", "content": "How much is 0 plus 0?"}, {"role": "assistant", "content": "I think: 0"}
    ]  # fmt: skip
    assert first["origin"] == f"{tmp_path / 'prompts.jsonl'}:1" and (first["sample"], first["answer_score"]) == (0, 1.0)
    assert rows["unsolved.jsonl"][0] | {"key": "", "origin": ""} == {
        "prompt": "How much is 3 plus 3?", "reference": "6", "task": "sum", "key": "", "origin": "", "num_right": 0,
        "num_scored": 4,
    }  # fmt: skip
    for row in rows["preference.jsonl"]:
        assert (row["chosen_score"], row["rejected_score"]) == (1.0, 0.0) and row["chosen"] != row["rejected"]
    samples = read_jsonl(tmp_path / "out" / "reject_samples.jsonl")
    groups = read_jsonl(tmp_path / "out" / "groups.jsonl")
    assert len(samples) == 3 and len(groups) == NUM
    assert all(sample["key"] in {group["key"] for group in groups} for sample in samples)
    assert read_json(tmp_path / "out" / "data.json")["kept"] == NUM
    said = capsys.readouterr().out
    assert "48 answers to 12 prompts" in said and "1 without a score (1: no answer: none was given)" in said


def test_prompts_that_go_together_are_solved_together(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Prompt 3 is never answered rightly: the other one of its pair is unsolved with it, whichever comes first."""
    rows = read_jsonl(write_inputs(tmp_path) / "prompts.jsonl")
    for pairs, unsolved in (([0, 1, 1, 0], [3, 0]), ([0, 1, 2, 2], [3, 2]), ([0, 1, 2, 3], [3])):
        shared = [row | {"item": [item]} for row, item in zip(rows, pairs, strict=False)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shared))
        out = tmp_path / f"out{pairs[3]}{pairs[2]}"
        run(stage(tmp_path, accept={"together": "item"}), tiny_checkpoint, out)
        told = [[int(row["reference"]) // 2 for row in read_jsonl(out / f"{name}solved.jsonl")] for name in ("un", "")]
        assert told == [unsolved, [n for n in range(4) if n not in unsolved]]
        assert read_json(out / "reject.json")["rows"]["unsolved.jsonl"] == len(unsolved)
    (tmp_path / "prompts.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match=r"prompts\.jsonl:1.*accept\.together"):
        run(stage(tmp_path, accept={"together": "item"}), tiny_checkpoint, tmp_path / "without")


def test_the_files_are_read_as_what_they_are(tmp_path: Path, tiny_checkpoint: Path) -> None:
    run(stage(write_inputs(tmp_path)), tiny_checkpoint, tmp_path / "out")
    kinds: dict[str, RecordKind] = {
        "accepted.jsonl": "conversation", "rejected.jsonl": "rating", "preference.jsonl": "preference",
        "solved.jsonl": "prompt", "unsolved.jsonl": "prompt",
    }  # fmt: skip
    for name, kind in kinds.items():
        records, ledger = read_records(Data(files=(str(tmp_path / "out" / name),)), (kind,))
        assert len(records) == len(read_jsonl(tmp_path / "out" / name)) > 0 and ledger.num_dropped == 0
    # What was not solved is asked again as it was: the same prompt under the same name, with its columns.
    again = run(
        stage(tmp_path, data={"files": [str(tmp_path / "out" / "unsolved.jsonl")]}), tiny_checkpoint, tmp_path / "more"
    )
    (group,) = read_jsonl(tmp_path / "more" / "groups.jsonl")
    assert group["key"] == read_jsonl(tmp_path / "out" / "unsolved.jsonl")[0]["key"]
    assert group["reference"] == "6" and group["columns"]["task"] == "sum" and again.metrics["num_prompts"] == 1


def test_the_tiny_model_answers(tmp_path: Path, tiny_checkpoint: Path) -> None:
    result = run(native(write_inputs(tmp_path)), tiny_checkpoint, tmp_path / "out")
    assert 0 < result.metrics["accept_rate"] < 1
    assert {"seconds_load", "seconds_generate", "seconds_score", "mean_length_right"} <= set(result.metrics)
    assert result.metrics["num_accepted"] == len(read_jsonl(tmp_path / "out" / "accepted.jsonl"))


def test_killed_and_run_again_it_ends_in_the_same_bytes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_inputs(tmp_path)
    run(native(tmp_path), tiny_checkpoint, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for answered, scored in ((0.0, 0.0), (0.4, 0.2), (0.6, 0.6), (1.0, 0.7), (1.0, 1.0)):
        folder = tmp_path / f"killed{answered}{scored}"
        folder.mkdir()
        for name, share in (("rollouts.jsonl", answered), ("groups.jsonl", scored)):
            content = expected[name]
            (folder / name).write_bytes(content[: int(share * len(content))])
        (folder / ".accepted.jsonl.tmp77").write_text("left by a kill")
        run(native(tmp_path), tiny_checkpoint, folder)
        assert contents(folder) == expected


def test_nothing_that_was_answered_is_asked_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_inputs(tmp_path)
    run(stage(tmp_path), tiny_checkpoint, tmp_path / "out")
    asked = (tmp_path / "mine.py.asked").read_text().split()
    assert len(asked) == len(set(asked)) == 4 * NUM
    run(stage(tmp_path), tiny_checkpoint, tmp_path / "out")
    assert (tmp_path / "mine.py.asked").read_text().split() == asked


def mine(folder: Path, **names: str) -> dict[str, Any]:
    return {"functions": {name: f"{folder / 'mine.py'}:{function}" for name, function in names.items()}}


def keys_and_prompts(folder: Path) -> list[tuple[str, str | None]]:
    return [(row["messages"][-1]["content"], row["reference"]) for row in read_jsonl(folder / "groups.jsonl")]


def test_reading_is_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = write_inputs(tmp_path)
    (folder / "mine.py").write_text(FUNCTIONS.replace('{"a": n, "b": 1, "want": str(n + 1)}', '{"prompt": f"{n}?"}'))
    config = stage(folder, data={}, reward={"type": "length", "target": 5}, **mine(folder, read="read"))
    run(config, tiny_checkpoint, tmp_path / "out")
    assert keys_and_prompts(tmp_path / "out") == [("0?", None), ("1?", None), ("2?", None)]
    assert read_jsonl(tmp_path / "out" / "groups.jsonl")[1]["origin"] == f"{folder / 'mine.py'}:read:2"


def test_formatting_is_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = write_inputs(tmp_path)
    every = mine(folder, read="read", format="format", generate="generate")
    run(stage(folder, data={}, **every), tiny_checkpoint, tmp_path / "out")
    assert keys_and_prompts(tmp_path / "out") == [(f"How much is {n} plus 1?", str(n + 1)) for n in range(3)]
    assert read_jsonl(tmp_path / "out" / "groups.jsonl")[0]["columns"] == {"reference": "1", "source": "made"}
    rows = [{"a": n, "reference": "x"} for n in range(2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"files": [str(folder / "rows.jsonl")]}
    length = {"type": "length", "target": 5}
    run(stage(folder, data=data, reward=length, **mine(folder, format="as_text")), tiny_checkpoint, tmp_path / "text")
    assert keys_and_prompts(tmp_path / "text") == [("Say 0.", "x"), ("Say 1.", "x")]
    broken = stage(folder, data=data, **mine(folder, format="broken"))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: functions\.format raised KeyError: 'absent' \(mine\.py, line"):
        run(broken, tiny_checkpoint, tmp_path / "broken")


def test_judging_is_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = write_inputs(tmp_path)
    reward = {"type": "custom", "path": f"{folder / 'mine.py'}:score"}
    strict = run(stage(folder, reward=reward), tiny_checkpoint, tmp_path / "strict")
    mild = run(stage(folder, reward=reward, accept={"min_score": 0.5}), tiny_checkpoint, tmp_path / "mild")
    assert strict.metrics["num_accepted"] == 0 < mild.metrics["num_accepted"]
    assert not (tmp_path / "strict" / "accepted.jsonl").read_text()


def test_saving_is_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = write_inputs(tmp_path)
    result = run(stage(folder, **mine(folder, generate="generate", save="save")), tiny_checkpoint, tmp_path / "out")
    saved = read_json(tmp_path / "out" / "mine.json")
    assert len(saved) == NUM and saved[3][1] == ["rejected"] * 4
    assert not any((tmp_path / "out" / name).exists() for name in FILES) and result.metrics["num_prompts"] == NUM
    result = run(stage(folder, **mine(folder, generate="generate", save="early")), tiny_checkpoint, tmp_path / "early")
    assert result.metrics["num_prompts"] == NUM, "all are counted, taken or not"


def test_what_a_function_raises_is_said_with_its_place(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = write_inputs(tmp_path)
    with pytest.raises(ConfigError, match=r"functions\.save: raised TypeError: .*mine\.py:generate"):
        run(stage(folder, **mine(folder, generate="generate", save="generate")), tiny_checkpoint, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"functions\.read: .*has no function 'red'.*it has: .*read"):
        run(stage(folder, **mine(folder, read="red")), tiny_checkpoint, tmp_path / "out")
    (folder / "mine.py").write_text("def generate(requests):\n    return ['one']\n")
    with pytest.raises(ConfigError, match=r"functions\.generate: must give an answer for each of 12 requests"):
        run(stage(folder), tiny_checkpoint, tmp_path / "few")


def test_no_score_at_all_is_said_with_the_reasons(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = write_inputs(tmp_path)
    (folder / "mine.py").write_text("def generate(requests):\n    return [None for _ in requests]\n")
    with pytest.raises(RunError, match=r"no answer has a score \(found 48 answers .* 48 without a score \(48: no "):
        run(stage(folder), tiny_checkpoint, tmp_path / "out")
    assert len(read_jsonl(tmp_path / "out" / "groups.jsonl")) == NUM


def test_mistakes_are_found_before_anything_is_asked(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = write_inputs(tmp_path)
    with (folder / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": 7}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:13"):
        run(stage(folder), tiny_checkpoint, tmp_path / "out")
    with (folder / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "very " * 300, "reference": "1"}) + "\n")
        file.write(json.dumps({"prompt": "How many?", "reference": "many"}) + "\n")
    data = {"files": [str(folder / "prompts.jsonl")], "on_bad_row": "drop", "max_length": 200}
    result = run(stage(folder, data=data), tiny_checkpoint, tmp_path / "out")
    ledger = read_json(tmp_path / "out" / "data.json")
    assert (ledger["read"], ledger["kept"], result.metrics["num_prompts"]) == (NUM + 3, NUM, NUM)
    assert {"prompt alone longer than max_length", "its reference does not get full marks"} <= set(ledger["dropped"])
    assert sum(dropped["count"] for dropped in ledger["dropped"].values()) == 3
    assert len((folder / "mine.py.asked").read_text().split()) == 4 * NUM


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (["reward={type: model, path: rm, normalise: running}"], "is normalised by what came before"),
        (["reward={type: composite, parts: [{name: a, reward: {type: exact}, normalise: running}]}"], "is normalised"),
        (["data.files=[]"], r"data\.files.*is required"),
        (["accept.max_per_prompt=0"], r"accept\.max_per_prompt"),
        (["accept.order=longest"], r"accept\.order"),
        (["data.files=['@absent/accepted.jsonl']"], "none is called 'absent'"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(changed: Sequence[str], complaint: str) -> None:
    plan = ["model.path=m", "data.files=p.jsonl", "reward.type=numeric"]
    load_plan(None, plan, kind="reject")
    with pytest.raises(UserError, match=complaint):
        load_plan(None, [*plan, *changed], kind="reject")
