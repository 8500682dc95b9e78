"""judge_examples end to end on a tiny model, and the examples read as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import whet.rollout.build as build
import whet.stages.judge_examples as judge_examples
from tests.stages.test_prepare import Judging, contents
from whet.config.data import Data
from whet.config.model import Model
from whet.config.stage import JudgeExamplesStage
from whet.data.sources import read_records
from whet.errors import RunError
from whet.runs.files import read_json, read_jsonl
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef, StageResult
from whet.stages.context import Context


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NativeEngine", Judging)


def stage(folder: Path, **keys: object) -> JudgeExamplesStage:
    rows = [
        {"prompt": f"How much is {n} plus {n}?", "response": f"{answer}, I say", "reward": value, "reason": "So so."}
        for n in range(12)
        for answer, value in ((2 * n, 5), (2 * n + 1, 3), ("much", 0))
    ]
    (folder / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.txt").write_text("Task: {instruction}\nAnswer: {response}\nEnd with Score: 0 to 5.\n")
    judge = {"template": str(folder / "judge.txt"), "votes": 6, "max_new_tokens": 6, "temperature": 1.0}
    data = {"files": [str(folder / "scored.jsonl")]}
    return JudgeExamplesStage.model_validate(
        {"name": "judge_examples", "data": data, "judge": judge, "batch_size": 8} | keys
    )


def run(config: JudgeExamplesStage, checkpoint: Path, folder: Path) -> StageResult:
    ref, paths = ModelRef(path=str(checkpoint)), StagePaths(folder)
    model = Model(path=str(checkpoint), device="cpu")
    return judge_examples.run(
        config, Context(model=model, start=ref, models={"base": ref}, paths=paths, folders={}, stage=config)
    )


@pytest.mark.usefixtures("judging")
def test_what_judge_and_people_agree_on_becomes_examples(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = stage(tmp_path, balance=False)
    metrics = run(config, tiny_checkpoint, tmp_path / "out").metrics
    out = tmp_path / "out"
    assert (metrics["num_prompts"], metrics["num_judgements"], metrics["human_agreement_num"]) == (12, 216, 36)
    assert 0 < metrics["human_agreement"] < 1 and 0 < metrics["parse_failure_rate"] < 0.5
    file = out / "judge_examples.jsonl"
    records, ledger = read_records(Data(files=(str(file),)), ("conversation",))
    account = read_json(out / "examples.json")
    assert len(records) == metrics["num_examples"] == account["examples"] == 3 * account["kept"] > 0
    assert account["total"] == 12 and ledger.num_dropped == 0
    examples = read_jsonl(file)
    for start in range(0, len(examples), 3):
        scores = [example["score"] for example in examples[start : start + 3]]
        assert scores[0] > scores[1] > scores[2], "in the people's order"
    (first, *_) = read_jsonl(out / "raw_responses.jsonl")
    assert [candidate["human"] for candidate in first["candidates"]] == [5.0, 3.0, 0.0]
    assert sum(read_json(out / "histograms.json")["score"]["counts"]) == 36
    expected = contents(out)
    (tmp_path / "killed").mkdir()
    stored = expected["judgements.jsonl"]
    (tmp_path / "killed" / "judgements.jsonl").write_bytes(stored[: len(stored) // 2])
    run(config, tiny_checkpoint, tmp_path / "killed")
    assert contents(tmp_path / "killed") == expected


def test_peoples_own_scores_need_no_judge(tmp_path: Path, tiny_checkpoint: Path) -> None:
    metrics = run(stage(tmp_path, targets="human"), tiny_checkpoint, tmp_path / "out").metrics
    assert metrics == {"num_prompts": 12, "num_examples": 36}
    (first, *_) = read_jsonl(tmp_path / "out" / "judge_examples.jsonl")
    assert first["messages"][0]["content"].startswith("Task: How much is 0 plus 0?\nAnswer: 0, I say")
    assert first["messages"][1]["content"] == "So so.\nScore: 5"


def test_no_agreement_is_said_with_the_reasons(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A random model does not judge in the asked form."""
    with pytest.raises(RunError, match="no judge examples") as caught:
        run(stage(tmp_path), tiny_checkpoint, tmp_path / "out")
    assert "12: no vote could be read for every answer" in str(caught.value)
