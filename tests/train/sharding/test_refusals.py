"""What does not go with weights in parts is said in one line, before anything is loaded or sent."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from whet.config.load import load_plan
from whet.config.sharding import DeepSpeed, Fsdp, NoSharding
from whet.config.stage import TrainStage
from whet.config.train import Train
from whet.errors import RunError
from whet.ranks.group import ALONE, Ranks
from whet.stages.parts import check_parts
from whet.train.parallel import Parallel
from whet.train.sharding.choose import holding_of
from whet.train.sharding.holding import check_plain

CPU, FP32 = torch.device("cpu"), torch.float32
TWO = Ranks(rank=0, world=2)
REWARD = {"type": "length", "target": 9}
WATCH = [{"type": "perplexity", "data": {"files": ["told.jsonl"]}}]


@pytest.mark.parametrize(
    ("train", "dtype", "field"),
    [
        (Train(weights="bf16_master"), FP32, "train.weights"),
        (Train(optimizer="adamw_8bit"), FP32, "train.optimizer"),
        (Train(), torch.float16, "train.precision"),
    ],
)
def test_only_fp32_parts_and_adamw(train: Train, dtype: torch.dtype, field: str) -> None:
    with pytest.raises(RunError, match=r"does not go with launch\.sharding fsdp") as caught:
        check_plain(train, dtype, "fsdp")
    assert caught.value.field == field
    check_plain(Train(), torch.bfloat16, "fsdp")


def test_a_rank_alone_holds_the_whole_model() -> None:
    for sharding in (NoSharding(), Fsdp(cpu_offload=True), DeepSpeed(config="absent.json")):
        assert holding_of(sharding, CPU, FP32, ALONE) is None
    assert holding_of(NoSharding(), CPU, FP32, TWO) is None


def test_there_is_nothing_to_offload_from_on_a_cpu() -> None:
    with pytest.raises(RunError, match=r"launch\.sharding\.cpu_offload: there is no GPU to offload from"):
        holding_of(Fsdp(cpu_offload=True), CPU, FP32, TWO)


def test_deepspeed_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 2}}', encoding="utf-8")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(RunError, match=r"launch\.sharding\.type: needs a package .*pip install 'whet\[deepspeed\]'"):
        holding_of(DeepSpeed(config=str(file)), CPU, FP32, TWO)


def stage(kind: str, **more: Any) -> TrainStage:
    plan = load_plan({
        "run": "run", "model": {"path": "m"}, "data": {"files": ["a.jsonl"]}, "stages": [{"kind": kind, **more}],
    })  # fmt: skip
    return cast(TrainStage, plan.stages[0])


def held(*, looks: bool) -> Parallel:
    return cast(Parallel, SimpleNamespace(holding=SimpleNamespace(looks=looks, switches=not looks)))


def test_ppo_and_watching() -> None:
    with pytest.raises(RunError, match="PPO's value function"):
        check_parts(stage("ppo", reward=REWARD), held(looks=False), adapter=False)
    with pytest.raises(RunError, match=r"stages\.sft\.watch: tasks cannot be watched"):
        check_parts(stage("sft", watch=WATCH), held(looks=True), adapter=False)
    check_parts(stage("sft", watch=WATCH), held(looks=False), adapter=False)
    check_parts(stage("grpo", reward=REWARD), held(looks=True), adapter=False)
    check_parts(stage("ppo", reward=REWARD), cast(Parallel, SimpleNamespace(holding=None)), adapter=False)


def test_zero3_has_no_reference_by_an_adapter() -> None:
    with pytest.raises(RunError, match="ZeRO-3 cannot switch an adapter off"):
        check_parts(stage("dpo"), held(looks=True), adapter=True)
    check_parts(stage("dpo"), held(looks=False), adapter=True)
    check_parts(stage("sft"), held(looks=True), adapter=True)


def test_a_bare_word_and_a_section() -> None:
    base = {"run": "run", "model": {"path": "m"}, "data": {"files": ["a.jsonl"]}, "stages": ["sft"]}
    assert load_plan({**base, "launch": {"sharding": "fsdp"}}).launch.sharding == Fsdp()
    given = {"type": "deepspeed", "config": "ds.json"}
    assert load_plan({**base, "launch": {"sharding": given}}).launch.sharding == DeepSpeed(config="ds.json")
