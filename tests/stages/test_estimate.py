"""Estimates of plans: from their own data, from a config.json alone, and against what a run really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from whet.cli import main
from whet.config.load import load_plan
from whet.config.stage import DpoStage, GrpoStage
from whet.data.rendered import RenderedGroup
from whet.data.tokens import load_tokenizer
from whet.errors import ConfigError, ModelError, UserError
from whet.estimate.memory import memory_of
from whet.estimate.result import StageEstimate, to_json
from whet.estimate.text import table
from whet.stages.estimate.batches import keys_met
from whet.stages.estimate.lengths import lengths_of
from whet.stages.estimate.plan import Asked, estimate_plan
from whet.stages.estimate.probe import probed, with_probe

ROWS = [
    {"prompt": "Paris is", "chosen": "the capital of France " * size, "rejected": "a plum"} for size in range(1, 13)
]


@pytest.fixture
def folder(in_tmp: Path) -> Path:
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    said = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": row["chosen"]}) + "\n" for row in ROWS))
    return in_tmp


def plan(checkpoint: Path, *stages: Mapping[str, Any], **top: Any) -> dict[str, Any]:
    return {
        "run": "run",
        "model": {"path": str(checkpoint), "device": "cpu"},
        "data": {"files": ["pairs.jsonl"], "max_length": 128},
        "train": {"batch_size": 4, "precision": "fp32", "max_steps": 2},
        "stages": list(stages),
    } | top  # fmt: skip


def estimate(
    checkpoint: Path, *stages: Mapping[str, Any], asked: Asked | None = None, **top: Any
) -> list[StageEstimate]:
    return list(estimate_plan(load_plan(plan(checkpoint, *stages, **top)), asked or Asked()))


SFT = {"kind": "sft", "data": {"files": ["rows.jsonl"], "max_length": 128}}
GRPO = {
    "kind": "grpo", "rollout": {"group_size": 4, "max_new_tokens": 16}, "reward": {"type": "length", "target": 8},
    "data": {"files": ["prompts.jsonl"], "max_length": 128},
}  # fmt: skip


def test_lengths_are_those_of_the_rows(tiny_checkpoint: Path, folder: Path) -> None:
    """A pair is its prompt once and both responses; the micro-batch is the largest that the feed makes."""
    (found,) = estimate(tiny_checkpoint, {"kind": "dpo"})
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    prompt = [{"role": "user", "content": "Paris is"}]
    asked = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])
    assert found.longest > asked
    batch = found.setting.micro_batch
    assert found.longest <= batch.tokens <= min(768, 4 * found.longest)
    assert 0 < batch.targets < batch.tokens
    assert batch.seen == batch.targets + asked * 2 * round((batch.tokens - batch.targets) / asked)
    assert found.work is not None
    assert (found.work.records, found.work.steps) == (12, 3)


def test_an_adapters_reference_is_no_second_model(tiny_checkpoint: Path, folder: Path) -> None:
    (adapter,) = estimate(tiny_checkpoint, {"kind": "dpo"})
    (full,) = estimate(tiny_checkpoint, {"kind": "dpo"}, model={"path": str(tiny_checkpoint), "lora": None})
    (without,) = estimate(
        tiny_checkpoint, {"kind": "dpo", "objective": {"type": "simpo"}},
        model={"path": str(tiny_checkpoint), "lora": None},
    )  # fmt: skip
    assert [len(one.setting.beside) for one in (adapter, full, without)] == [0, 1, 0]
    assert (adapter.setting.trains, full.setting.trains) == ("adapter", "all")


def test_a_judge_beside_a_server_that_runs_already_is_in_this_process(tiny_checkpoint: Path, folder: Path) -> None:
    judge = GRPO | {"reward": {"type": "judge"}}
    started, attached = (
        estimate(tiny_checkpoint, judge | {"rollout": {"engine": {"type": "vllm"} | more}})[0].setting.beside
        for more in ({}, {"url": "http://localhost:8000/v1"})
    )
    assert ([one.part for one in started], [one.part for one in attached]) == ([], ["judge"])


@pytest.mark.parametrize(("large", "step"), [(10_000_000, 64), (10_000, 32)])
def test_narrow_products_on_a_cpu_have_their_filling(
    large: int, step: int, tiny_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whet.models.repeated.LARGE", large)
    train = {"batch_size": 4, "precision": "bf16"}
    (found,) = estimate(tiny_checkpoint, {"kind": "dpo"}, train=train)
    batch = found.setting.micro_batch
    assert batch.filling == -batch.tokens % step and batch.tokens % 64 and batch.tokens % 64 <= 32
    (wide,) = estimate(tiny_checkpoint, {"kind": "dpo"})
    assert wide.setting.micro_batch.filling == 0


def test_stages_go_on_from_what_was_left(tiny_checkpoint: Path, folder: Path) -> None:
    """After full training a stage loads fp32 weights; the data of a stage that has not run is assumed."""
    later = {"kind": "dpo", "data": {"files": ["@sft/none.jsonl"], "max_length": 96}}
    model = {"path": str(tiny_checkpoint), "lora": None, "device": "cpu"}
    first, second = estimate(tiny_checkpoint, SFT, later, model=model)
    assert second.setting.file_bytes == 4 * first.setting.shape.parameters
    assert second.longest == 96 and second.work is None
    assert any("@sft/none.jsonl is not there yet" in note for note in second.notes)


def test_answers_are_as_long_as_they_may_be(tiny_checkpoint: Path, folder: Path) -> None:
    (found,) = estimate(tiny_checkpoint, GRPO)
    batch, decoding = found.setting.micro_batch, found.setting.decoding
    assert decoding is not None and (decoding.rows, decoding.prompts, decoding.answer_tokens) == (16, 4, 16)
    assert batch.targets == 4 * 4 * 16
    assert batch.tokens == 4 * (found.longest + 4 * 16)


def test_changes_until_it_fits(tiny_checkpoint: Path, folder: Path) -> None:
    (found,) = estimate(
        tiny_checkpoint, {"kind": "sft"}, asked=Asked(gpus=1, memory=760e6, max_length=8192),
        model={"path": str(tiny_checkpoint), "lora": None}, train={"batch_size": 4},
    )  # fmt: skip
    assert not found.fits
    assert found.changes[0].keys in ("train.micro_batch_tokens=8192", "train.gradient_checkpointing=true")
    peaks = [found.peak, *(change.peak for change in found.changes)]
    assert peaks == sorted(peaks, reverse=True)
    text = table(found)
    assert "DOES NOT FIT 0.76 GB" in text and found.changes[0].keys in text


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 400 million weights that nobody has, by its numbers alone."""
    from transformers import Qwen3Config

    path = tmp_path_factory.mktemp("large")
    Qwen3Config(
        vocab_size=8192, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=8, head_dim=64,
    ).save_pretrained(path)  # fmt: skip
    return path


@pytest.mark.parametrize(
    "stage",
    [
        SFT, SFT | {"train": {"precision": "fp16"}}, SFT | {"watch": [{"type": "perplexity", "data": SFT["data"]}]},
        GRPO, GRPO | {"kind": "ppo"}, GRPO | {"rollout": {"engine": "vllm"}},
    ],
    ids=["sft", "fp16", "watch", "grpo", "ppo", "vllm"],
)  # fmt: skip
def test_ranks_are_not_advised_where_a_run_would_refuse_them(
    stage: dict[str, Any], large: Path, folder: Path, request: pytest.FixtureRequest
) -> None:
    asked, top = Asked(gpus=1, memory=1e6, max_length=512), {"model": {"path": str(large), "lora": None}}
    name = request.node.callspec.id
    (found,) = estimate(large, stage, asked=asked, train={"batch_size": 4}, **top)
    assert any("launch.sharding=fsdp" in change.keys for change in found.changes) == (name in ("sft", "grpo"))


def test_ranks_of_a_cpu_share_its_memory(large: Path, folder: Path) -> None:
    model = {"path": str(large), "lora": None, "device": "cpu"}
    (found,) = estimate(large, SFT, model=model, asked=Asked(memory=1e6, max_length=512))
    assert found.changes and not any("launch." in change.keys for change in found.changes)


@pytest.mark.parametrize(
    ("stage", "parts", "offloads"),
    [
        (2, (), False), (2, ("offload_optimizer",), True), (3, ("offload_optimizer",), False),
        (3, ("offload_optimizer", "offload_param"), True),
    ],
)  # fmt: skip
def test_what_deepspeed_offloads_is_on_the_host(
    stage: int, parts: tuple[str, ...], offloads: bool, large: Path, folder: Path
) -> None:
    zero = {"stage": stage} | {part: {"device": "cpu"} for part in parts}
    Path("ds.json").write_text(json.dumps({"zero_optimization": zero}))
    launch = {"sharding": {"type": "deepspeed", "config": "ds.json"}}
    (found,) = estimate(
        large, SFT, asked=Asked(gpus=4, max_length=512), launch=launch, model={"path": str(large), "lora": None},
        train={"batch_size": 4},
    )  # fmt: skip
    sizes = {part.name: part.bytes for part in found.memory.peak.parts}
    assert ("optimiser state" in sizes) != offloads
    assert ("weights in 16 bits" in sizes) == (stage == 2 or not offloads), "ZeRO-2 keeps them whole"


def test_on_paper_from_a_configuration(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """32 billion weights nobody has here, on 8 and 64 GPUs: 16 bytes a weight are divided, activations are not."""
    from transformers import Qwen3Config

    path = tmp_path_factory.mktemp("paper")
    Qwen3Config(
        vocab_size=152_064, hidden_size=5120, intermediate_size=27_648, num_hidden_layers=64, num_attention_heads=40,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
    ).save_pretrained(path)  # fmt: skip
    top = {"model": {"path": str(path), "lora": None}, "train": {"gradient_checkpointing": True}}
    few, many = (
        estimate(path, {"kind": "sft"}, asked=Asked(gpus=gpus, memory=80e9, sharding="fsdp", max_length=4096), **top)[0]
        for gpus in (8, 64)
    )
    weights = few.setting.shape.parameters
    assert weights == pytest.approx(32.76e9, rel=0.02)
    assert few.setting.arithmetic == "bf16" and few.setting.micro_batch.recompute
    of_few, of_many = ({p.name: p.bytes for p in memory_of(e.setting).peak.parts} for e in (few, many))
    divided = ("weights", "gradients", "optimiser state")
    assert sum(of_few[name] for name in divided) == pytest.approx(16 * weights / 8)
    assert sum(of_many[name] for name in divided) == pytest.approx(16 * weights / 64)
    assert of_many["activations"] == of_few["activations"]
    assert not few.fits and many.fits
    assert any("no tokenizer" in note or "as asked for" in note for note in many.notes)


def test_time_from_stated_flops_and_from_a_probe(tiny_checkpoint: Path, folder: Path) -> None:
    (found,) = estimate(tiny_checkpoint, SFT, asked=Asked(flops=1e9))
    assert found.flops is not None and found.work is not None
    assert found.epoch_seconds == pytest.approx(found.flops / 1e9)
    lines = [
        {"tokens": 10, "step_seconds": 99.0, "peak_memory_bytes": 5},
        {"tokens": 30, "step_seconds": 2.0, "peak_memory_bytes": 7},
        {"tokens": 50, "step_seconds": 2.0, "peak_memory_bytes": 6},
    ]
    measured = replace(found, probed=probed(lines))  # the first step, which compiles and allocates, is left out
    assert measured.epoch_seconds == pytest.approx(found.work.tokens / 20)
    assert to_json([measured])[0]["probe"] == {"steps": 2, "tokens_per_second": 20.0, "peak": 7}


def test_every_query_meets_the_keys_before_it(tiny_checkpoint: Path, folder: Path) -> None:
    """Also in rows of several blocks of attention."""
    long = [{"prompt": "Say it", "chosen": "the capital of France " * 120, "rejected": "of France " * 180}]
    Path("pairs.jsonl").write_text(json.dumps(long[0]) + "\n")
    made = load_plan(plan(tiny_checkpoint, {"kind": "dpo"}, data={"files": ["pairs.jsonl"], "max_length": 4096}))
    (stage,) = made.stages
    assert isinstance(stage, DpoStage)
    lengths = lengths_of(stage, made.model, max_length=None)
    row = lengths.rows[0]
    assert isinstance(row, RenderedGroup)
    prompt, sizes = len(row.prompt_ids), [len(ids) for ids in row.response_ids]
    assert min(sizes) > 300
    met = sum(range(1, prompt + 1)) + sum(prompt + own for size in sizes for own in range(1, size + 1))
    assert keys_met(lengths, [0]) == met
    (found,) = estimate_plan(made, Asked())
    assert found.work is not None and found.work.seen == met


def test_a_probe_counts_whole_rounds(tiny_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers of a round are drawn in its first step."""
    taken: list[int] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        done = load_plan(command[-1])
        (stage,) = done.stages
        assert isinstance(stage, GrpoStage) and stage.train.max_steps is not None
        taken.append(steps := stage.train.max_steps)
        folder = Path(done.run) / "stages" / "01-grpo"
        folder.mkdir(parents=True)
        seconds = [1.0 if step % 4 else 9.0 for step in range(steps)]
        lines = [{"tokens": 8, "step_seconds": each, "peak_memory_bytes": 1} for each in seconds]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.CompletedProcess(command, 0, "", "")

    stage = GRPO | {"objective": {"type": "grpo", "minibatches": 2, "num_iterations": 2}}
    made = load_plan(plan(tiny_checkpoint, stage))
    monkeypatch.setattr(subprocess, "run", run)
    (found,) = with_probe(estimate_plan(made, Asked()), made, steps=3)
    assert taken == [8] and found.probed is not None
    assert (found.probed.steps, found.probed.tokens_per_second) == (4, pytest.approx(32 / 12))


def test_the_command(tiny_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.yaml").write_text(json.dumps(plan(tiny_checkpoint, SFT)))
    with pytest.raises(SystemExit) as ended:
        main(["estimate", "plan.yaml", "--json", "train.batch_size=2"])
    (found,) = json.loads(capsys.readouterr().out)
    assert (ended.value.code, found["fits"], found["kind"]) == (0, True, "sft")
    assert found["peak"] == pytest.approx(sum(found["moments"][found["peak_moment"]].values()), abs=20)
    with pytest.raises(SystemExit) as ended:
        main(["estimate", "plan.yaml", "--memory", "0.1"])
    assert ended.value.code == 1
    assert "DOES NOT FIT 0.10 GB" in capsys.readouterr().out


def test_a_device_of_another_machine_is_estimated_on_paper_alone(
    tiny_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    top = {"model": {"path": str(tiny_checkpoint), "device": "cuda"}}
    (found,) = estimate(tiny_checkpoint, SFT, asked=Asked(gpus=1, memory=24e9), **top)
    assert found.fits
    with pytest.raises(ModelError, match=r"^model\.device: torch finds no such device .*found 'cuda'"):
        estimate(tiny_checkpoint, SFT, **top)


def test_what_cannot_be_estimated(tiny_checkpoint: Path, folder: Path) -> None:
    merge = {"run": "run", "model": {"path": str(tiny_checkpoint)}, "stages": ["merge"]}
    with pytest.raises(ConfigError, match="no stage of the plan trains"):
        estimate_plan(load_plan(merge), Asked())
    from whet.cli.estimate import number

    assert (number("80", "--memory", unit=1e9), number("24GB", "--memory", unit=1e9), number("300T", "--flops")) == (
        80e9, 24e9, 300e12,
    )  # fmt: skip
    with pytest.raises(UserError, match="--memory: not a number"):
        number("much", "--memory")


@pytest.mark.parametrize("kind", ["dpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_a_run_takes_what_was_said(kind: str, tiny_checkpoint: Path, folder: Path, repository: Path) -> None:
    """Peak resident memory of `whet run` in a process of its own, and what `whet estimate` said in another."""
    stage = GRPO if kind == "grpo" else {"kind": "dpo"}
    model = {"path": str(tiny_checkpoint), "lora": None, "device": "cpu"}
    Path("plan.yaml").write_text(json.dumps(plan(tiny_checkpoint, stage, model=model)))
    (found,) = json.loads(printed(repository, "whet", "estimate", "plan.yaml", "--json"))
    peak = int(printed(repository, "benchmarks.estimate", "plan.yaml").split()[-1])
    assert 0.95 * peak <= found["peak"] <= 1.15 * peak


def printed(repository: Path, module: str, *words: str) -> str:
    """What a module prints, run as a program."""
    return subprocess.run(
        [sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(repository)},
    ).stdout  # fmt: skip


def test_a_base_in_four_bits_is_counted_in_four_bits(tiny_checkpoint: Path, folder: Path) -> None:
    model = {"path": str(tiny_checkpoint), "device": "cpu", "quantization": {"double": False}}
    (plain,), (narrow,) = estimate(tiny_checkpoint, SFT), estimate(tiny_checkpoint, SFT, model=model)
    assert (plain.setting.four_bits, narrow.setting.four_bits) == (0.0, 0.5625)
    weights = sum(product.inputs * product.outputs * product.count for product in narrow.setting.shape.products)
    before, after = (
        next(part.bytes for part in memory_of(one.setting).moments[0].parts if part.name == "frozen weights")
        for one in (plain, narrow)
    )
    assert before - after == (4 - 0.5625) * weights
