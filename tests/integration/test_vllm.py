"""A real vLLM server on the CPU: one start serves all of these. `make test-vllm` runs them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.rollout.stub import Spoiler
from whet.config.engine import Http, Vllm
from whet.config.load import load_plan
from whet.config.model import Lora, Model
from whet.data.render import Renderer
from whet.demo import playground
from whet.demo.plan import BASE
from whet.errors import RunError
from whet.experience.store import RolloutStore
from whet.models.load import load_model, load_tokenizer
from whet.rollout import retry
from whet.rollout.continuations import continuation_logprobs
from whet.rollout.engine import answers
from whet.rollout.http import http_engine
from whet.rollout.probe import trainer_logprobs
from whet.rollout.vllm import Checkpoint, Followed, VllmEngine
from whet.runs.files import read_jsonl, write_jsonl
from whet.schema.artifacts import ModelRef
from whet.schema.pictures import Picture
from whet.schema.records import Message, Part
from whet.schema.rollouts import Request, Sampling
from whet.stages.pipeline import run_plan

pytestmark = pytest.mark.vllm
TOKEN = "WHET_TEST_TOKEN"
CLOSE = 2e-3
"""Nats; both compute in fp32."""


@pytest.fixture(autouse=True)
def directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def policy(*, lora: Lora | None) -> Any:
    model = Model(path=str(BASE), device="cpu", lora=lora)
    return load_model(ModelRef(path=str(BASE)), model, dtype=torch.float32, trainable=True)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(BASE))


@pytest.fixture(scope="module")
def adapted() -> PeftModel:
    model = policy(lora=Lora(rank=8))
    assert isinstance(model, PeftModel)
    return model


@pytest.fixture(scope="module")
def engine(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase, adapted: PeftModel
) -> Iterator[VllmEngine]:
    """Started by whet, following a model with an adapter."""
    python = os.environ.get("WHET_VLLM_PYTHON")
    if not python:
        pytest.skip("WHET_VLLM_PYTHON names no interpreter with vLLM")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    config = Vllm(python=python, dtype="float32", max_length=1024, start_timeout=240, concurrency=16)
    checkpoint = Checkpoint(path=str(BASE), adapter=None, end_ids=(2,), folder=tmp_path_factory.mktemp("vllm"))
    running = VllmEngine(config, checkpoint, follows=Followed(model=adapted, tokenizer=tokenizer))
    os.environ[TOKEN] = running.headers["Authorization"].removeprefix("Bearer ")
    yield running
    process = running._process
    running.close()
    assert process is not None and process._keeper.poll() is not None


def attached(engine: VllmEngine, folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase) -> VllmEngine:
    checkpoint = Checkpoint(path=str(BASE), adapter=None, end_ids=(2,), folder=folder)
    config = Vllm(url=f"{engine.root}/v1", token_env=TOKEN)
    return VllmEngine(config, checkpoint, follows=Followed(model=model, tokenizer=tokenizer))


def requests(tokenizer: PreTrainedTokenizerBase, num: int, *, samples: int = 1) -> list[Request]:
    renderer = Renderer(tokenizer)
    how = Sampling(max_new_tokens=24, temperature=1.0)
    rows = playground.prompts("train", num, 0)
    return [
        renderer.ask((Message("user", row["prompt"]),)).request(f"{place}#{sample}", how, 0)
        for place, row in enumerate(rows)
        for sample in range(samples)
    ]


def move(model: torch.nn.Module, size: float) -> None:
    """As a step of training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


def test_ids_text_and_logprobs_are_the_models_own(
    engine: VllmEngine, adapted: PeftModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = requests(tokenizer, 16)
    engine.sync(7)
    for request, completion in zip(asked, answers(engine, asked), strict=True):
        assert completion.ids and completion.policy_version == 7
        assert completion.text == tokenizer.decode(list(completion.ids), skip_special_tokens=True)
        expected = trainer_logprobs(adapted, (*request.prompt_ids, *completion.ids))[-len(completion.ids) :]
        assert completion.logprobs == pytest.approx(expected, abs=CLOSE)


PARSE = """
import json, sys
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.multimodal.media import MediaConnector

asked = ChatCompletionRequest.model_validate(json.load(sys.stdin))
urls = [part["image_url"]["url"] for part in asked.messages[0]["content"] if part["type"] == "image_url"]
pictures = [MediaConnector().fetch_image(url) for url in urls]
print(json.dumps({
    "sizes": [getattr(picture, "media", picture).size for picture in pictures],
    "texts": [part["text"] for part in asked.messages[0]["content"] if part["type"] == "text"],
    "known": [asked.return_token_ids, asked.logprobs, asked.top_logprobs, asked.seed, asked.max_tokens],
    "unknown": sorted(asked.model_extra or {}),
}))
"""


def test_vllm_reads_the_pictures_of_a_request(engine: VllmEngine, tmp_path: Path) -> None:
    """Its models with pictures need torchvision, of which no build fits a torch for the CPU; so its parser is asked."""
    from PIL import Image

    Image.new("RGB", (9, 7), "red").save(tmp_path / "a.png")
    url = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    said = (Part("image", str(tmp_path / "a.png")), Part("text", "or"), Part("image", url), Part("text", "?"))
    picture = Picture(source=url, digest="d", num_tokens=1)
    request = Request(
        key="a", prompt_ids=(1, 5, 2, 5), pictures=(picture, picture), messages=(Message("user", said),),
        sampling=Sampling(max_new_tokens=9), seed=0,
    )  # fmt: skip
    path, body = engine._written(request)
    assert path == "/chat/completions"
    done = subprocess.run(
        [os.environ["WHET_VLLM_PYTHON"], "-c", PARSE], input=json.dumps(body), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "sizes": [[9, 7], [9, 7]], "texts": ["or", "?"], "known": [True, True, 0, body["seed"], 9], "unknown": [],
    }  # fmt: skip


def test_prompts_that_do_not_fit_are_data(engine: VllmEngine) -> None:
    how = Sampling(max_new_tokens=30)
    tight = Request(key="tight", prompt_ids=(5,) * 1020, sampling=how, seed=0)
    long = Request(key="long", prompt_ids=(5,) * 1024, sampling=how, seed=0)
    first, second = answers(engine, [tight, long])
    assert first.error is None and 0 < len(first.ids) <= 4
    assert second.error == "the prompt has 1024 tokens and the server takes 1024"


def test_chat_messages_through_the_http_engine(engine: VllmEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    chat = http_engine(Http(urls=(f"{engine.root}/v1",), model="whet", token_env=TOKEN, fields={"top_k": 0}))
    (completion,) = answers(chat, requests(tokenizer, 1))
    chat.close()
    assert completion.text and completion.num_tokens > 0 and chat.counts["prompt_tokens"] > 0


def test_through_a_faulty_proxy_every_prompt_has_exactly_its_samples(
    engine: VllmEngine, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.02)
    asked = requests(tokenizer, 60, samples=4)
    with Spoiler(engine.root, 0.2) as proxy:
        config = Http(urls=(proxy.url,), model="whet", api="completions", token_env=TOKEN, concurrency=16, retries=20)
        through = http_engine(config)
        done = list(RolloutStore(tmp_path / "rollouts.jsonl").stream(through, asked, chunk=1))
        through.close()
    assert [completion.key for completion in done] == [request.key for request in asked]
    assert all(completion.ids and completion.finish_reason != "error" for completion in done)
    assert sum(proxy.faults[kind] for kind in proxy.KINDS) > 20


def test_an_adapter_follows_training_and_a_broken_sync_stops_the_run(
    engine: VllmEngine, adapted: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.sync(1)
    for size in (0.02, 1e-3):
        move(adapted, size)
        engine.sync(2)
        assert engine.sync_difference is not None and engine.sync_difference < CLOSE
    monkeypatch.setattr(VllmEngine, "_load_adapter", lambda self, place: None)
    move(adapted, 1e-3)  # too small a step to be seen by the size of a difference
    with pytest.raises(RunError, match="the server has kept its old weights"):
        engine.sync(3)
    move(adapted, 0.5)
    with pytest.raises(RunError, match="does not have the trainer's weights: the log-probs of a probe text differ"):
        engine.sync(4)
    monkeypatch.undo()
    engine.sync(5)


def test_whole_weights_are_checked(engine: VllmEngine, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The CPU build of vLLM 0.32 does not renew all weights of this model, whose head is tied to its embeddings: the
    very thing that the check is for."""
    model: PreTrainedModel = policy(lora=None)
    whole = attached(engine, tmp_path, model, tokenizer)
    try:
        whole.sync(0)
        assert whole.sync_difference is not None and whole.sync_difference < CLOSE
        move(model, 0.01)
        with pytest.raises(RunError, match="the server does not have the trainer's weights"):
            whole.sync(1)
    finally:
        model.load_state_dict(policy(lora=None).state_dict())
        whole.sync(3)  # what the other tests find
        whole.close()


def test_whole_weights_follow_by_a_server_started_anew(
    engine: VllmEngine, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Which works wherever a checkpoint can be served."""
    model: PreTrainedModel = policy(lora=None)
    config = engine._config.model_copy(update={"sync": "restart"})
    checkpoint = Checkpoint(path=str(BASE), adapter=None, end_ids=(2,), folder=tmp_path)
    anew = VllmEngine(config, checkpoint, follows=Followed(model=model, tokenizer=tokenizer))
    try:
        before = answers(anew, requests(tokenizer, 2))
        move(model, 0.01)
        anew.sync(1)
        assert anew.sync_difference is not None and anew.sync_difference < CLOSE
        after = answers(anew, requests(tokenizer, 2))
        weighed = [replace(request, continuations=((7,), (9, 4), (2,))) for request in requests(tokenizer, 4)]
        for said, known in zip(answers(anew, weighed), continuation_logprobs(model, weighed), strict=True):
            assert said.continuation_logprobs == pytest.approx(known, abs=CLOSE)
    finally:
        anew.close()
    assert [c.policy_version for c in before + after] == [0, 0, 1, 1]
    expected = trainer_logprobs(model, (*requests(tokenizer, 2)[0].prompt_ids, *after[0].ids))[-len(after[0].ids) :]
    assert after[0].logprobs == pytest.approx(expected, abs=CLOSE)


def test_a_reload_that_the_server_refuses_is_said(engine: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"lora_adapter: the server refuses"):
        engine._load_adapter(tmp_path / "absent")


def test_grpo_through_the_server(engine: VllmEngine, tmp_path: Path) -> None:
    """Three steps: every round is drawn by the server with the adapter of that step."""
    (tmp_path / "reward.py").write_text("def length(prompt, completion):\n    return min(1.0, len(completion) / 40)\n")
    write_jsonl(tmp_path / "prompts.jsonl", playground.prompts("train", 24, 0))
    plan = load_plan({
        "run": str(tmp_path / "run"), "model": {"path": str(BASE), "device": "cpu", "lora": {"rank": 8}},
        "stages": [{
            "kind": "grpo", "data": {"files": [str(tmp_path / "prompts.jsonl")], "format": "prompt"},
            "reward": {"type": "custom", "path": f"{tmp_path / 'reward.py'}:length"},
            "rollout": {"group_size": 4, "max_new_tokens": 16, "engine": {
                "type": "vllm", "url": f"{engine.root}/v1", "token_env": TOKEN}},
            "train": {"batch_size": 8, "max_steps": 3, "learning_rate": 1e-3, "precision": "fp32"},
        }],
    })  # fmt: skip
    run_plan(plan)
    stage = tmp_path / "run" / "stages" / "01-grpo"
    lines = read_jsonl(stage / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    rounds = [read_jsonl(path) for path in sorted((stage / "rounds").glob("*.jsonl"))]
    versions = [sorted({row["policy_version"] for row in rows if "key" in row}) for rows in rounds]
    assert versions == [[version] for version in range(versions[0][0], versions[0][0] + 3)], "weights of each step"
    assert all(len(rows) == 8 * 4 + 1 for rows in rounds)
    assert json.loads((stage / "status.json").read_text())["status"] == "done"


def test_prepare_and_evaluate_through_the_server(engine: VllmEngine, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", playground.prompts("train", 24, 0))
    (tmp_path / "judge.txt").write_text(playground.JUDGE_PROMPT + "\n")
    server = {"type": "vllm", "url": f"{engine.root}/v1", "token_env": TOKEN}
    data = {"files": [str(tmp_path / "prompts.jsonl")], "format": "prompt"}
    checker = {"type": "custom", "path": "whet.demo.playground:check"}
    plan = load_plan({
        "run": str(tmp_path / "run"), "model": {"path": str(BASE), "device": "cpu"},
        "stages": [
            {"kind": "evaluate", "engine": server, "models": ["base"],
             "tasks": [{"type": "exact", "data": data, "checker": checker, "max_new_tokens": 24}]},
            {"kind": "prepare", "data": data, "checker": checker,
             "rollout": {"group_size": 4, "max_new_tokens": 24, "temperature": 1.0, "engine": server},
             "judge": {"template": str(tmp_path / "judge.txt"), "votes": 1, "max_new_tokens": 8, "low": 0, "high": 10}},
        ],
    })  # fmt: skip
    try:
        run_plan(plan)
    except RunError as error:  # an untrained judge may leave no pair; what was asked and kept is what is tested
        assert "no pairs left" in str(error)
    assert len(read_jsonl(tmp_path / "run" / "stages" / "01-evaluate" / "replies.jsonl")) == 24
    rollouts = read_jsonl(tmp_path / "run" / "stages" / "02-prepare" / "rollouts.jsonl")
    assert len({row["key"] for row in rollouts}) == len(rollouts) == 24 * 4
