"""prompts end to end: shards of files round by round, the exclusion, and new prompts by a model, killed on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import whet.rollout.build as build
import whet.stages.make_prompts as make_prompts
from whet.config.load import load_plan
from whet.config.model import Model
from whet.config.stage import PromptsStage
from whet.errors import ConfigError, RunError
from whet.rollout.native import NativeEngine
from whet.runs.files import read_json, read_jsonl
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef, StageResult
from whet.schema.rollouts import Completion, Request
from whet.stages.context import Context

HELD_OUT = {"type": "exact", "name": "held_out", "data": {"files": ["held_out.jsonl"], "format": "prompt"}}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(start: int, stop: int) -> list[dict[str, Any]]:
    asked = "How much in all is {} plus {}?"
    return [{"prompt": asked.format(n, n), "reference": str(2 * n), "task": "sum"} for n in range(start, stop)]


def run(
    folder: Path, checkpoint: Path | None = None, *, folders: dict[str, Path] | None = None, **keys: Any
) -> StageResult:
    config = PromptsStage.model_validate({"name": folder.name, **keys})
    ref = ModelRef(path=str(checkpoint))
    model = Model(path=str(checkpoint), device="cpu")
    return make_prompts.run(
        config,
        Context(
            model=model, start=ref, models={"base": ref}, paths=StagePaths(folder), folders=folders or {}, stage=config
        ),
    )


def test_files_are_gone_through_round_by_round_without_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "prompts.jsonl", [*numbered(0, 10), {"prompt": "how much in all is 3 plus 3"}])
    held_out = write(tmp_path / "held_out.jsonl", numbered(1, 3))
    keys = {"data": {"files": [file]}, "exclude": [{"files": [held_out]}], "num": 4}
    first = run(tmp_path / "one", **keys)
    rows = read_jsonl(tmp_path / "one" / "prompts.jsonl")
    assert rows == [numbered(0, 10)[n] for n in (0, 3, 4, 5)]
    account = read_json(tmp_path / "one" / "prompts.json")
    assert account["refused"] == {"evaluation": 2} and account["excluded"]["in_both"] == 0
    assert account["excluded"]["evaluation"]["num"] == 2 and account["excluded"]["evaluation"]["files"] == [held_out]
    listed = [(tmp_path / "one" / f"{name}.sha256").read_text().split() for name in ("evaluation", "taken")]
    assert [len(names) for names in listed] == [2, 4] and not set(listed[0]) & set(listed[1])
    assert first.metrics["num_prompts"] == 4 and first.metrics["refused/evaluation"] == 2
    assert first.metrics["near_evaluation"] == 4  # templated prompts are near each other; it is said, not hidden
    assert "none of them is among the 2 that evaluations ask" in capsys.readouterr().out

    seen = {"seen": {"files": ["@one/prompts.jsonl"]}}
    run(tmp_path / "two", folders={"one": tmp_path / "one"}, **keys, **seen)
    assert read_jsonl(tmp_path / "two" / "prompts.jsonl") == [numbered(0, 10)[n] for n in (6, 7, 8, 9)]
    with pytest.raises(RunError, match=r"no prompts left.*was seen before"):
        both = {"seen": {"files": ["@one/prompts.jsonl", "@two/prompts.jsonl"]}}
        run(tmp_path / "three", folders={n: tmp_path / n for n in ("one", "two")}, **keys, **both)


def test_the_same_words_about_another_picture_are_another_prompt(tmp_path: Path) -> None:
    for name, shown in (("a", b"1"), ("b", b"2"), ("again", b"1"), ("held", b"3")):
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG" + shown)

    def asking(*names: str) -> list[dict[str, Any]]:
        return [{"prompt": "What is this?", "images": [f"{name}.png"]} for name in names]

    file = write(tmp_path / "prompts.jsonl", [*asking("a", "b", "again", "held"), {"prompt": "What is this?"}])
    held_out = write(tmp_path / "held_out.jsonl", asking("held"))
    run(tmp_path / "out", data={"files": [file]}, exclude=[{"files": [held_out]}])
    assert read_json(tmp_path / "out" / "prompts.json")["refused"] == {"duplicate": 1, "evaluation": 1}
    assert [str(row["prompt"]).count(".png") for row in read_jsonl(tmp_path / "out" / "prompts.jsonl")] == [1, 1, 0]


def test_what_json_has_no_word_for_becomes_text(tmp_path: Path) -> None:
    row = {"prompt": "How much?", "day": date(2024, 2, 29), "cost": Decimal("1.50")}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "p.parquet")
    run(tmp_path / "out", data={"files": [str(tmp_path / "p.parquet")]})
    (written,) = read_jsonl(tmp_path / "out" / "prompts.jsonl")
    assert written == {"prompt": "How much?", "day": "2024-02-29", "cost": "1.50"}


class Listing(NativeEngine):
    """The real engine, but it answers with a list of tasks made of its tokens, the last one cut short now and then."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            first, second = sum(completion.ids), completion.ids[0]
            made = f"Say thing{first} part{second} item{first + second} now."
            text = f"9. {made}\n10. Draw thing{first} for me.\n11. Go on"
            yield replace(completion, text=text, finish_reason="length")


class Dying(Listing):
    """Killed in its second batch."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            if completion.key == "made/9#0":
                raise KeyboardInterrupt
            yield completion


def making(tmp_path: Path) -> dict[str, Any]:
    file = write(tmp_path / "seeds.jsonl", [{"prompt": f"Tell me about subject{n} in a few words."} for n in range(9)])
    rollout = {"group_size": 1, "batch_size": 2, "max_new_tokens": 6, "temperature": 1.0}
    return {"data": {"files": [file]}, "num": 12, "source": {"type": "self_instruct", "rollout": rollout}}


def test_new_prompts_are_made_until_there_are_enough_and_a_killed_stage_goes_on(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "NativeEngine", Listing)
    result = run(tmp_path / "whole", tiny_checkpoint, **making(tmp_path))
    rows = read_jsonl(tmp_path / "whole" / "prompts.jsonl")
    assert len(rows) == 12 == result.metrics["num_prompts"] and all(row["prompt"].startswith("Say") for row in rows)
    account = read_json(tmp_path / "whole" / "prompts.json")
    assert account["refused"]["keyword"] > 0
    assert account["made"] == 12 + sum(account["refused"].values()) + account["not_needed"]

    monkeypatch.setattr(build, "NativeEngine", Dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", tiny_checkpoint, **making(tmp_path))
    assert not (tmp_path / "killed" / "prompts.jsonl").exists()
    monkeypatch.setattr(build, "NativeEngine", Listing)
    run(tmp_path / "killed", tiny_checkpoint, **making(tmp_path))
    for name in ("prompts.jsonl", "prompts.json", "made/000008.jsonl", "taken.sha256"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_model_that_makes_none_ends_at_the_limit(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_prompts, "parse", lambda text, whole: ["Too short"])
    keys = making(tmp_path)
    keys["source"]["max_requests"] = 6
    with pytest.raises(RunError, match=r"no prompts left.*6: has too few words"):
        run(tmp_path / "out", tiny_checkpoint, **keys)


def load(*stages: Any) -> Any:
    return load_plan({"run": "r", "model": {"path": "m"}, "data": {"files": ["a.jsonl"]}, "stages": list(stages)})


def test_in_a_plan_the_evaluations_and_the_rounds_before_are_left_out_by_themselves() -> None:
    rounds = {"repeat": 3, "stages": ["prompts", "dpo", {"kind": "evaluate", "tasks": [HELD_OUT]}]}
    plan = load({"kind": "sft", "watch": [{"type": "exact", "data": {"files": ["v.jsonl"]}}]}, rounds)
    stages = [stage for stage in plan.stages if stage.kind == "prompts"]
    assert [stage.seen.files for stage in stages] == [
        (), ("@prompts-1/prompts.jsonl",), ("@prompts-1/prompts.jsonl", "@prompts-2/prompts.jsonl"),
    ]  # fmt: skip
    assert all([data.files for data in stage.exclude] == [("v.jsonl",), ("held_out.jsonl",)] for stage in stages)
    assert stages[0].exclude[1].format == "prompt"


def test_what_is_said_about_exclusion_wins() -> None:
    plan = load({"kind": "prompts", "exclude": []}, {"kind": "evaluate", "tasks": [HELD_OUT]})
    assert plan.stages[0].exclude == ()


def test_making_prompts_needs_a_number() -> None:
    with pytest.raises(ConfigError, match=r"num: is required to make new prompts"):
        load({"kind": "prompts", "source": {"type": "self_instruct"}})
