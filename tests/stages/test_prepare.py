"""prepare end to end on a tiny model: its files, its numbers, its errors, and a kill on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import whet.rollout.build as build
import whet.stages.prepare as prepare
from whet.config.data import Data
from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.config.stage import PrepareStage
from whet.data.sources import read_records
from whet.errors import ConfigError, DataError, ModelError, RunError
from whet.models.load import load_tokenizer
from whet.models.reward import load_reward_model, save_reward_model
from whet.rollout.native import NativeEngine
from whet.runs.files import read_json, read_jsonl
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef, StageResult
from whet.schema.records import Preference, Scored
from whet.schema.rollouts import Completion, Request
from whet.stages.context import Context

FILES = ("raw_responses", "dpo_training", "grpo_training", "gspo_training", "self_reward_samples")


class Judging(NativeEngine):
    """The real engine, but a judgement is replaced by a score made of its tokens, one in eight unreadable."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            if said_by_judge(completion):
                completion = replace(completion, text=words(completion), finish_reason="stop")
            yield completion


def said_by_judge(completion: Completion) -> bool:
    return "/judge" in completion.key or "/meta" in completion.key


def words(completion: Completion) -> str:
    """In whichever form was asked for: a score, a verdict (the one drawn first is better), a ranking of three."""
    number = sum(completion.ids) % 8
    if number == 7:
        return "I cannot say."
    places = re.search(r"#(\d)/judge\[(\d)\]|/meta(\d)\.(\d)", completion.key)
    first, second = filter(None, places.groups()) if places else ("0", "0")
    verdict = "first" if first < second else "second" if first > second else "tie"
    ranking = ("1 > 2 > 3", "3 > 1 = 2", "2 > 3 > 1")[number % 3]
    return f"Verdict: {verdict}\nRanking: {ranking}\nReason {number}{len(completion.ids)}. Score: {min(number, 5)}"


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NativeEngine", Judging)


def write_prompts(folder: Path) -> Path:
    file = folder / "prompts.jsonl"
    rows = [{"prompt": f"How much is {n} plus {n}?", "reference": str(2 * n)} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.txt").write_text("Task: {instruction}\nAnswer: {response}\nEnd with Score: 0 to 5.\n")
    return file


def stage(folder: Path, **sections: object) -> PrepareStage:
    return PrepareStage.model_validate(
        {
            "name": "prepare",
            "data": {"files": [str(folder / "prompts.jsonl")]},
            "rollout": {"group_size": 3, "batch_size": 6, "max_new_tokens": 12, "temperature": 1.0},
            "judge": {
                "type": "pointwise", "template": str(folder / "judge.txt"), "votes": 2, "max_new_tokens": 6,
                "temperature": 1.0,
            },
            "num_logged": 4,
        }
        | sections
    )


def run(config: PrepareStage, checkpoint: Path, folder: Path) -> StageResult:
    ref = ModelRef(path=str(checkpoint))
    model = Model(path=str(checkpoint), device="cpu")
    paths = StagePaths(folder)
    return prepare.run(
        config, Context(model=model, start=ref, models={"base": ref}, paths=paths, folders={}, stage=config)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("judging")
def test_files_and_numbers(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts(tmp_path)
    result = run(stage(tmp_path, checker={"type": "contains"}), tiny_checkpoint, tmp_path / "out")
    rows = {name: read_jsonl(tmp_path / "out" / f"{name}.jsonl") for name in FILES}
    metrics = result.metrics
    assert (metrics["num_prompts"], metrics["num_candidates"]) == (12, 36)
    assert len(rows["raw_responses"]) == 12
    assert metrics["num_pairs"] == len(rows["dpo_training"]) > 0
    assert len(rows["self_reward_samples"]) == 4
    assert all(sample in rows["raw_responses"] for sample in rows["self_reward_samples"])
    scored = [
        c
        for row in rows["raw_responses"]
        for c in row["candidates"]
        if c["score"] is not None and c["response"].strip()
    ]
    assert len(rows["grpo_training"]) == len(scored)
    assert metrics["mean_score"] == pytest.approx(sum(c["score"] for c in scored) / len(scored))
    for row in rows["gspo_training"]:
        assert sum(row["weights"]) == pytest.approx(1.0) and len(row["responses"]) == len(row["weights"])
    for row in rows["dpo_training"]:
        assert row["chosen_score"] > row["rejected_score"] and row["chosen"] != row["rejected"]
    assert 0 < metrics["parse_failure_rate"] < 0.5
    assert {"tie_rate", "mean_length", "seconds_load", "seconds_generate", "seconds_judge", "accuracy"} <= set(metrics)
    counts = read_json(tmp_path / "out" / "pairs.json")
    assert counts["total"] == 12 == sum(value for name, value in counts.items() if name not in ("total", "pairs"))
    drawn = read_json(tmp_path / "out" / "histograms.json")
    assert sum(drawn["score"]["counts"]) == len(scored) and sum(drawn["candidates"]["counts"]) == 12
    assert read_json(tmp_path / "out" / "data.json")["kept"] == 12
    assert f"{len(rows['dpo_training'])} pairs of 12 prompts" in capsys.readouterr().out


@pytest.mark.usefixtures("judging")
def test_the_files_are_read_as_what_they_are(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_prompts(tmp_path)
    config = stage(tmp_path, data={"files": [str(tmp_path / "prompts.jsonl")], "system": "Be short."})
    run(config, tiny_checkpoint, tmp_path / "out")
    kinds = {"dpo_training": "preference", "grpo_training": "scored", "gspo_training": "scored"}
    for name, kind in kinds.items():
        file = tmp_path / "out" / f"{name}.jsonl"
        records, ledger = read_records(Data(files=(str(file),)), (kind,))  # type: ignore[arg-type]
        assert len(records) == len(read_jsonl(file)) and ledger.num_dropped == 0
        assert all(isinstance(record, Preference | Scored) for record in records)


@pytest.mark.usefixtures("judging")
def test_multi_turn_prompts_keep_their_turns(tmp_path: Path, tiny_checkpoint: Path) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Name a city."},
    ]
    write_prompts(tmp_path).write_text("".join(json.dumps({"prompt": turns}) + "\n" for _ in range(6)))
    run(stage(tmp_path), tiny_checkpoint, tmp_path / "out")
    file = tmp_path / "out" / "dpo_training.jsonl"
    assert read_jsonl(file)[0]["prompt"] == turns
    for name, kind in (("dpo_training", "preference"), ("grpo_training", "scored"), ("gspo_training", "scored")):
        source = Data(files=(str(tmp_path / "out" / f"{name}.jsonl"),))
        records, _ = read_records(source, (kind,))  # type: ignore[arg-type]
        first = records[0]
        assert isinstance(first, Preference | Scored)
        assert [(m.role, m.text) for m in first.prompt] == [(t["role"], t["content"]) for t in turns]


@pytest.mark.usefixtures("judging")
def test_killed_and_run_again_it_ends_in_the_same_bytes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_prompts(tmp_path)
    run(stage(tmp_path), tiny_checkpoint, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for share in (0.0, 0.3, 0.55, 0.99):
        folder = tmp_path / f"killed{share}"
        folder.mkdir()
        stored = expected["rollouts.jsonl"]
        (folder / "rollouts.jsonl").write_bytes(stored[: int(share * len(stored))])
        run(stage(tmp_path), tiny_checkpoint, folder)
        assert contents(folder) == expected


def test_no_pairs_left_is_said_with_the_reasons(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A random model does not judge in the asked form."""
    write_prompts(tmp_path)
    with pytest.raises(RunError, match=r"no pairs left after judging \(found 0 pairs of 12 prompts \(\d+: ") as caught:
        run(stage(tmp_path), tiny_checkpoint, tmp_path / "out")
    assert "no judgement could be read" in str(caught.value) and "raw_responses.jsonl" in str(caught.value)
    assert len(read_jsonl(tmp_path / "out" / "raw_responses.jsonl")) == 12
    assert not (tmp_path / "out" / "dpo_training.jsonl").exists()


def test_mistakes_are_found_before_the_model_loads(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_prompts(tmp_path)
    with pytest.raises(ConfigError, match="checker"):
        run(stage(tmp_path, checker={"type": "custom", "path": "absent:f"}), tiny_checkpoint, tmp_path / "out")
    with pytest.raises(ConfigError, match="no such template"):
        run(stage(tmp_path, judge={"type": "pointwise", "template": "absent.txt"}), tiny_checkpoint, tmp_path / "out")
    with pytest.raises(DataError):
        run(stage(tmp_path, data={"files": ["absent.jsonl"]}), tiny_checkpoint, tmp_path / "out")


@pytest.mark.usefixtures("judging")
def test_prompts_longer_than_max_length_are_dropped_and_counted(tmp_path: Path, tiny_checkpoint: Path) -> None:
    file = write_prompts(tmp_path)
    with file.open("a") as handle:
        handle.write(json.dumps({"prompt": "very " * 200 + "long", "reference": "1"}) + "\n")
    data = {"files": [str(file)], "max_length": 200}
    result = run(stage(tmp_path, data=data), tiny_checkpoint, tmp_path / "out")
    assert result.metrics["num_prompts"] == 12
    ledger = read_json(tmp_path / "out" / "data.json")
    assert (ledger["read"], ledger["kept"]) == (13, 12) and "prompt alone longer than max_length" in ledger["dropped"]
    with pytest.raises(DataError, match=r"prompts\.jsonl:13: the prompt has \d+ tokens"):
        run(stage(tmp_path, data=data | {"on_overlong": "error"}), tiny_checkpoint, tmp_path / "again")


@pytest.mark.usefixtures("judging")
def test_answers_compared_two_by_two(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_prompts(tmp_path)
    config = stage(tmp_path, judge={"type": "pairwise", "max_new_tokens": 6}, pairs={"select": "all"})
    metrics = run(config, tiny_checkpoint, tmp_path / "out").metrics
    rows = read_jsonl(tmp_path / "out" / "raw_responses.jsonl")
    assert all(0.0 <= c["score"] <= 1.0 for row in rows for c in row["candidates"] if c["score"] is not None)
    told = [one for row in rows for one in row["judgements"]]
    assert len(told) == metrics["num_judgements"] == 2 * metrics["num_comparisons"] > 0
    assert {"swap_inconsistency_rate", "comparison_tie_rate", "first_place_share"} <= metrics.keys()
    assert metrics["num_pairs"] == len(read_jsonl(tmp_path / "out" / "dpo_training.jsonl"))
    assert metrics["num_pairs"] == read_json(tmp_path / "out" / "pairs.json")["pairs"]


@pytest.mark.usefixtures("judging")
def test_answers_ranked_by_another_model(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_prompts(tmp_path)
    config = stage(tmp_path, judge={"type": "listwise", "votes": 2, "max_new_tokens": 6, "model": "base"})
    metrics = run(config, tiny_checkpoint, tmp_path / "out").metrics
    told = [one for row in read_jsonl(tmp_path / "out" / "raw_responses.jsonl") for one in row.get("judgements", [])]
    assert metrics["num_judgements"] == len(told) and all(sorted(one["shown"]) == [0, 1, 2] for one in told)
    absent = stage(tmp_path, judge={"type": "listwise", "model": "absent"})
    with pytest.raises(ModelError, match="absent"):
        run(absent, tiny_checkpoint, tmp_path / "again")


@pytest.mark.usefixtures("judging")
def test_scores_by_probability_and_the_judges_own_training_data(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Killed on the way as well: expected scores and judged judgements come back from the files."""
    write_prompts(tmp_path)
    judge = {
        "type": "pointwise", "template": str(tmp_path / "judge.txt"), "votes": 3, "max_new_tokens": 6,
        "scores": "expectation", "temperature": 1.0,
    }  # fmt: skip
    config = stage(tmp_path, judge=judge, meta={"max_new_tokens": 6})
    metrics = run(config, tiny_checkpoint, tmp_path / "out").metrics
    out = tmp_path / "out"
    scores = [c["score"] for row in read_jsonl(out / "raw_responses.jsonl") for c in row["candidates"] if c["score"]]
    assert all(0 < score < 5 for score in scores) and any(score != round(score) for score in scores)
    assert 0 < metrics["score_mass"] <= 1 and metrics["num_judge_pairs"] > 0
    records, _ = read_records(Data(files=(str(out / "judge_training.jsonl"),)), ("preference",))
    assert len(records) == metrics["num_judge_pairs"] == read_json(out / "judge_pairs.json")["pairs"]
    expected = contents(out)
    folder = tmp_path / "killed"
    folder.mkdir()
    for name in ("rollouts.jsonl", "judgements.jsonl", "probabilities.jsonl", "meta_judgements.jsonl"):
        (folder / name).write_bytes(expected[name][: len(expected[name]) // 2])
    run(config, tiny_checkpoint, folder)
    assert contents(folder) == expected


def test_a_reward_model_judges_without_words(tmp_path: Path, tiny_checkpoint: Path) -> None:
    reward_model = save_reward_model_of(tiny_checkpoint, tmp_path / "rm")
    write_prompts(tmp_path)
    config = stage(tmp_path, judge={"type": "reward_model", "path": str(reward_model)})
    metrics = run(config, tiny_checkpoint, tmp_path / "out").metrics
    assert metrics["num_pairs"] > 0 and "parse_failure_rate" not in metrics
    assert len(read_jsonl(tmp_path / "out" / "rollouts.jsonl")) == 36, "answers alone: nobody was asked to judge"


def save_reward_model_of(checkpoint: Path, folder: Path) -> Path:
    model = load_reward_model(
        ModelRef(path=str(checkpoint)), Model(path=str(checkpoint), lora=None, device="cpu"), RewardHead(),
        dtype=torch.float32, trainable=True, seed=1,
    )  # fmt: skip
    save_reward_model(model, load_tokenizer(str(checkpoint)), folder)
    return folder


@pytest.mark.usefixtures("judging")
def test_right_against_wrong_is_the_checkers_choice(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_prompts(tmp_path)
    (tmp_path / "right.py").write_text("def check(prompt, completion): return float(len(completion) % 2)\n")
    config = stage(
        tmp_path, pairs={"select": "right_wrong"}, checker={"type": "custom", "path": f"{tmp_path / 'right.py'}:check"}
    )
    metrics = run(config, tiny_checkpoint, tmp_path / "out").metrics
    rows = read_jsonl(tmp_path / "out" / "dpo_training.jsonl")
    assert rows and all(len(row["chosen"]) % 2 == 1 and len(row["rejected"]) % 2 == 0 for row in rows)
    assert metrics["pair_accuracy"] == 1.0
    with pytest.raises(ValidationError, match="needs a checker"):
        stage(tmp_path, pairs={"select": "right_wrong"})
    with pytest.raises(ValidationError, match="votes > 1"):
        stage(tmp_path, meta={}, judge={"type": "pairwise"})
