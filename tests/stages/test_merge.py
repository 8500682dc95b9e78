"""What a merged checkpoint takes along, and where it is made."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, ProcessorMixin

from whet.cli import main
from whet.config.load import load_plan
from whet.config.model import Lora, Model
from whet.config.stage import MergeStage
from whet.errors import RunError
from whet.models.load import load_model, load_tokenizer, save_trained
from whet.models.merge import logprob_difference, probe_logprobs
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef
from whet.stages import merge
from whet.stages.context import Context

TEMPLATE = "{% for turn in messages %}# {{ turn.content }}{% endfor %}"


@pytest.mark.parametrize("given", [False, True])
def test_the_chat_template_of_the_plan_else_of_the_adapter(tiny_checkpoint: Path, tmp_path: Path, given: bool) -> None:
    config = Model(path=str(tiny_checkpoint), lora=Lora(rank=2), device="cpu")
    trained = load_model(ModelRef(path=str(tiny_checkpoint)), config, dtype=torch.float32, trainable=True)
    save_trained(trained, load_tokenizer(str(tiny_checkpoint)), tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "own.jinja").write_text(f"{TEMPLATE} of the plan")
    ref = ModelRef(path=str(tiny_checkpoint), adapter=str(tmp_path / "adapter"))
    model = config.model_copy(update={"chat_template": str(tmp_path / "own.jinja")}) if given else config
    stage, paths = MergeStage(name="merge", dtype="fp32"), StagePaths(tmp_path / "out")
    context = Context(model=model, start=ref, models={"base": ref}, paths=paths, folders={}, stage=stage)
    merged = merge.run(stage, context).model
    assert merged is not None
    assert load_tokenizer(merged.path).chat_template == (f"{TEMPLATE} of the plan" if given else TEMPLATE)


FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 22.05 GiB.\nSee more"
PROBES = [[1, 2, 3, 4, 5], [9, 8, 7]]


def adapter_on(checkpoint: Path, folder: Path, *, targets: tuple[str, ...] = ("q_proj",)) -> ModelRef:
    """The checkpoint with an adapter that does something."""
    config = Model(path=str(checkpoint), lora=Lora(rank=2, targets=targets), device="cpu")
    trained = load_model(ModelRef(path=str(checkpoint)), config, dtype=torch.float32, trainable=True)
    torch.manual_seed(0)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_trained(trained, load_tokenizer(str(checkpoint)), folder)
    return ModelRef(path=str(checkpoint), adapter=str(folder))


def context_of(ref: ModelRef, stage: MergeStage, folder: Path, **model: Any) -> Context:
    return Context(
        model=Model(path=ref.path, **model), start=ref, models={"base": ref}, paths=StagePaths(folder), folders={},
        stage=stage,
    )  # fmt: skip


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An accelerator that has no room; the devices that models are loaded onto."""
    asked: list[str] = []

    def load(ref: ModelRef, config: Model, **told: Any) -> Any:
        asked.append(config.device)
        if config.device == "cuda":
            raise torch.OutOfMemoryError(FULL)
        return load_model(ref, config, **told)

    monkeypatch.setattr(merge, "load_model", load)
    monkeypatch.setattr(merge, "pick_device", lambda name, *, field: torch.device(name.replace("auto", "cuda")))
    return asked


def test_where_a_device_has_no_room_it_is_merged_on_the_cpu(
    small_device: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = adapter_on(tiny_checkpoint, tmp_path / "adapter")
    stage = MergeStage(name="merge", dtype="fp32")
    result = merge.run(stage, context_of(ref, stage, tmp_path / "out", device="auto"))
    assert small_device == ["cuda", "cpu"]
    assert capsys.readouterr().err == "no room for the merge on cuda: it goes on on the CPU, more slowly\n"
    assert result.model is not None and result.metrics["max_logprob_difference"] < 1e-4
    assert (Path(result.model.path) / "model.safetensors").is_file()


def test_a_device_that_is_named_is_not_left(
    small_device: list[str], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, whose command does the same on the CPU."""
    ref = adapter_on(tiny_checkpoint, tmp_path / "an adapter")
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    asked = {"device": "cuda", "chat_template": str(tmp_path / "own.jinja"), "adapter": "another"}
    stage = MergeStage(name="merge", dtype="fp32", tolerance=0.5)
    with pytest.raises(RunError) as caught:
        merge.run(stage, context_of(ref, stage, tmp_path / "out", **asked))
    assert small_device == ["cuda"] and not (tmp_path / "out" / "model").exists()
    said, _, command = str(caught.value).partition("; merge on the CPU, in a run of its own: ")
    assert said == "model.device: memory ran out: CUDA out of memory. Tried to allocate 2.00 GiB (found cuda)"
    program, kind, *words = shlex.split(command)
    assert (program, kind) == ("whet", "merge")
    plan = load_plan(None, words, kind="merge")
    assert plan.model == Model(
        path=ref.path, adapter=ref.adapter, device="cpu", chat_template=str(tmp_path / "own.jinja")
    )
    assert [one.model_dump(exclude={"name"}) for one in plan.stages] == [
        stage.model_copy(update={"start": plan.stages[0].start}).model_dump(exclude={"name"})
    ]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([kind, *words])
    assert ended.value.code == 0
    assert (next(Path("runs/merge/stages").iterdir()) / "model" / "model.safetensors").is_file()


def test_the_advice_keeps_weights_in_4_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ref = ModelRef(path=str(tiny_checkpoint), adapter="somewhere")
    stage = MergeStage(name="merge", onto="original")
    context = context_of(ref, stage, tmp_path, device="cuda", quantization={"type": "fp4"})
    plan = load_plan(None, shlex.split(merge._on_cpu(stage, context))[2:], kind="merge")
    assert plan.model.quantization == context.model.quantization
    assert isinstance(plan.stages[0], MergeStage) and plan.stages[0].onto == "original"


def test_an_adapter_on_tied_embeddings(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    ref = adapter_on(tiny_checkpoint, tmp_path / "adapter", targets=("q_proj", "embed_tokens", "lm_head"))
    expected = probe_logprobs(load_model(ref, Model(path=ref.path, device="cpu"), dtype=torch.float32), PROBES)
    recwarn.clear()
    stage = MergeStage(name="merge", dtype="fp32")
    merged = merge.run(stage, context_of(ref, stage, tmp_path / "out", device="cpu")).model
    assert merged is not None
    assert "merge: the adapter parts the LM head from the embeddings" in capsys.readouterr().out
    assert not [warning for warning in recwarn if "tie_word_embeddings" in str(warning.message)]
    again = AutoModelForCausalLM.from_pretrained(merged.path).eval()
    assert logprob_difference(probe_logprobs(again, PROBES), expected) < 1e-4


@pytest.mark.parametrize("given", [False, True])
def test_a_processor_reads_the_template_that_was_set(tiny_vlm_checkpoint: Path, tmp_path: Path, given: bool) -> None:
    """And not an old file of the checkpoint, which transformers would take first."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_vlm_checkpoint, checkpoint)
    own = (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": own}))
    ref = adapter_on(checkpoint, tmp_path / "adapter")
    asked = {}
    if given:
        (tmp_path / "own.jinja").write_text("{# new #}" + own)
        asked["chat_template"] = str(tmp_path / "own.jinja")
    else:
        (tmp_path / "adapter" / "chat_template.jinja").write_text("{# new #}" + own)
    stage = MergeStage(name="merge", dtype="fp32")
    merged = merge.run(stage, context_of(ref, stage, tmp_path / "out", device="cpu", **asked)).model
    assert merged is not None
    assert ProcessorMixin.get_processor_dict(merged.path)[0]["chat_template"] == "{# new #}" + own
