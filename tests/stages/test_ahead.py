"""What a plan names and nobody has is said before its first stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whet.config.load import load_plan
from whet.errors import ConfigError
from whet.runs.layout import RunPaths
from whet.runs.ledger import Status, now, write_status
from whet.stages.ahead import check_ahead

SFT: dict[str, Any] = {"kind": "sft", "data": {"files": ["here.jsonl"]}}


def check(*later: dict[str, Any], fresh: bool = False) -> None:
    Path("here.jsonl").touch()
    Path("nameless").mkdir(exist_ok=True)
    Path("nameless/adapter_config.json").write_text("{}")
    plan = load_plan({"run": "r", "model": {"path": "m"}, "stages": [SFT, *later]})
    check_ahead(plan, plan.stages, RunPaths(Path("r")), fresh=fresh)


def stage(kind: str, **sections: Any) -> dict[str, Any]:
    return {"kind": kind, "data": {"files": ["here.jsonl"]}} | sections


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (stage("dpo", data={"files": ["hare.jsonl"]}), "hare.jsonl: dpo.data.files: no such file; did you mean here"),
        (stage("sft", data={"files": ["here.jsonl"], "eval_files": ["no.jsonl"]}), "no.jsonl: sft-2.data.eval_files: "),
        (stage("sft", watch=[{"type": "exact", "data": {"files": ["no.jsonl"]}}]), "no.jsonl: sft-2.watch.0.data.file"),
        ({"kind": "pair", "chosen": ["no.jsonl"], "rejected": ["here.jsonl"]}, "no.jsonl: pair.chosen: no such file"),
        (stage("dpo", reference={"model": "stf"}), "dpo.reference.model: no such model (found 'stf'); did you mean"),
        (stage("prepare", judge={"model": "nope"}), "prepare.judge.model: no such model (found 'nope'); give a dir"),
        (stage("prepare", judge={"model": "nameless"}), "prepare.judge.model: does not say which checkpoint it was tr"),
        (stage("prepare", judge={"template": "addtive"}), "prepare.judge.template: no such template (found 'addtive')"),
        (stage("prepare", checker={"type": "custom", "path": "no.py:f"}), "prepare.checker.path: no such file"),
        (stage("grpo", reward={"type": "custom", "path": "no_such_module:f"}), "grpo.reward.path: no such module"),
        (stage("grpo", reward={"type": "custom", "path": "f"}), "grpo.reward.path: no such function (found 'f');"),
        (stage("grpo", reward={"type": "model", "path": "rm"}), "grpo.reward.path: no such model (found 'rm')"),
        (stage("ppo", reward={"type": "exact"}, value={"type": "model", "model": "no"}), "ppo.value.model: no such mo"),
        (stage("grpo", reward={"type": "json_schema", "path": "no.json"}), "grpo.reward.path: no such file"),
    ],
)
def test_a_later_stage_asks_for_what_nobody_has(in_tmp: Path, later: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(later)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "later",
    [
        stage("dpo", data={"files": ["@sft/made.jsonl", "r/stages/01-sft/made.jsonl", "owner/dataset"]}),
        stage("dpo", reference={"model": "owner/model"}),
        stage("grpo", reward={"type": "model", "path": "owner/model", "adapter": "owner/adapter"}),
        stage("dpo", reference={"model": "sft"}),
        stage("dpo", reference={"model": "m"}),
        stage("prepare", judge={"model": "r/stages/01-sft/model"}),
        stage("prepare", judge={"model": "theirs", "engine": {"type": "http", "urls": ["http://a"], "model": "b"}}),
        stage("grpo", reward={"type": "custom", "path": "json:loads"}),
        stage("reject", reward={"type": "exact"}, data={"files": ["s3://x"]}, functions={"read": "json:load"}),
    ],
)
def test_what_will_be_there_passes(in_tmp: Path, later: dict[str, Any]) -> None:
    check(later)


def test_a_stage_that_is_done_is_not_looked_at(in_tmp: Path) -> None:
    paths = RunPaths(Path("r")).stage(2, "dpo")
    paths.root.mkdir(parents=True)
    write_status(paths, Status(name="dpo", kind="dpo", status="done", config={}, inputs={}, started=now()))
    check(stage("dpo", data={"files": ["no.jsonl"]}))
    with pytest.raises(ConfigError, match="no such file"):
        check(stage("dpo", data={"files": ["no.jsonl"]}), fresh=True)


def test_rounds_that_may_never_come_are_not_looked_at(in_tmp: Path) -> None:
    Path("p-1.jsonl").touch()
    body = [stage("dpo", data={"files": ["p-{round}.jsonl"]}), {
        "kind": "evaluate", "tasks": [{"type": "exact", "data": {"files": ["here.jsonl"]}}],
    }]  # fmt: skip
    check({"repeat": 3, "stages": body, "metric": "exact/accuracy", "stop": {"no_gain": 1}})
    with pytest.raises(ConfigError, match=r"p-2.jsonl: dpo-2.data.files: no such file"):
        check({"repeat": 3, "stages": body})
