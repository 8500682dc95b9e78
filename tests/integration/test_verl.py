"""Exports against verl 0.9.1 itself, on a CPU: its configuration tree, validators, data set and reward loader.

`make test-verl` runs them, with verl beside whet's own environment. Nothing is trained: verl trains on GPUs alone.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.launch.exported import REWARDS, exported, plan_of
from whet.config.plan import Plan
from whet.config.rules import Numeric
from whet.data.render import Renderer
from whet.demo.plan import BASE
from whet.launch.verl.export import OVERRIDES
from whet.launch.verl.keys import KEYS
from whet.models.load import load_tokenizer
from whet.rewards.build import build_reward
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion

pytestmark = pytest.mark.verl
IGNORED = ("custom_reward_function", "reward_model", "sandbox_fusion")
"""Sections at the top that verl composes and never reads."""
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@pytest.fixture(autouse=True)
def directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(autouse=True, scope="module")
def table_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package datasets, which verl reads rows with, keeps copies: not among the user's."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


def composed(overrides: list[str]) -> Any:
    """verl's own tree under these overrides; Hydra refuses a key that is not in it."""
    import hydra

    spec = importlib.util.find_spec("verl")
    assert spec is not None and spec.submodule_search_locations is not None, "verl is not there: make test-verl"
    folder = Path(next(iter(spec.submodule_search_locations))) / "trainer" / "config"
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose("ppo_trainer", overrides)


def config_of(out: Path) -> Any:
    return composed((out / OVERRIDES).read_text(encoding="utf-8").splitlines())


def leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_is_one_of_verls() -> None:
    from omegaconf import OmegaConf

    known = set(leaves(OmegaConf.to_container(composed([]), resolve=False)))
    assert KEYS - known == set()
    assert not [key for key in KEYS if key.partition(".")[0] in IGNORED]
    assert {key.partition(".")[0] for key in known} >= set(IGNORED), "verl has dropped them: so may keys.py"


@pytest.fixture
def allowed_rank(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """verl asks vLLM for the ranks it takes, and vLLM is not here: its list stands in for it."""
    asked: list[int] = []
    stand_in = ModuleType("verl.workers.rollout.vllm_rollout.utils")

    def get_vllm_max_lora_rank(rank: int) -> int:
        asked.append(rank)
        return next(allowed for allowed in ALLOWED_RANKS if allowed >= rank)

    stand_in.get_vllm_max_lora_rank = get_vllm_max_lora_rank  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "verl.workers.rollout.vllm_rollout", ModuleType("vllm_rollout"))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return asked


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("reward", list(REWARDS))
@pytest.mark.parametrize("kind", ["ppo", "grpo", "gspo"])
def test_verl_validates_every_export(
    kind: str, reward: str, lora: bool, tmp_path: Path, allowed_rank: list[int]
) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    plan = plan_of(tmp_path, kind, reward=REWARDS[reward], lora=lora)
    options = ["verl.n_gpus_per_node=4", "verl.micro_batch_per_gpu=2"]
    exported(plan, tmp_path / "out", options)
    config = config_of(tmp_path / "out")
    stage = plan.stages[0]
    assert need_critic(config) == (kind == "ppo")
    assert need_reference_policy(config) == (stage.objective.kl_weight > 0)  # type: ignore[union-attr]
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert allowed_rank == ([8] if lora else [])
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.policy_loss.loss_mode == ("gspo" if kind == "gspo" else "vanilla")
    if kind == "gspo":
        assert (actor.loss_agg_mode, actor.clip_ratio_low, actor.clip_ratio_high) == ("seq-mean-token-mean", 3e-4, 4e-4)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert (rollout.name, rollout.n, rollout.response_length) == ("vllm", 4, 32)
    served = omega_conf_to_dataclass(config.reward.reward_model)
    assert served.enable == (reward != "rule")
    assert served.model_path == (None if reward == "rule" else str(BASE.resolve()))


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    folder = tmp_path_factory.mktemp("grpo")
    plan = plan_of(folder, "grpo", data={"system": "Be brief.", "eval_fraction": 0.0})
    exported(plan, folder / "out")
    return plan, folder / "out"


def rows_of(out: Path, tokenizer: Any, processor: Any = None) -> Any:
    from omegaconf import open_dict
    from verl.utils.dataset.rl_dataset import RLHFDataset

    config = config_of(out)
    with open_dict(config.data):
        config.data.cache_dir = str(out / "cache")
    return RLHFDataset(list(config.data.train_files), tokenizer, config.data, processor)


def test_verl_reads_the_rows_and_renders_what_whet_renders(grpo: tuple[Plan, Path]) -> None:
    from verl.utils.tokenizer import normalize_token_ids

    tokenizer = load_tokenizer(str(BASE))
    rows = rows_of(grpo[1], tokenizer)
    assert len(rows) == 120
    renderer = Renderer(tokenizer, system="Be brief.")
    for number in (0, 7, 119):
        row = rows[number]
        ids = normalize_token_ids(
            tokenizer.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, tokenize=True)
        )
        question = Message("user", row["raw_prompt"][-1]["content"])
        assert tuple(ids) == renderer.prompt([question])
        assert row["index"] == number and row["reward_model"]["ground_truth"] == str(number + number % 7)


def test_pictures_reach_verl(tmp_path: Path) -> None:
    from PIL import Image

    from whet.launch.verl.rows import write_rows
    from whet.schema.records import Part

    Image.new("RGB", (5, 4), "red").save(tmp_path / "red.png")
    picture = Part("image", str(tmp_path / "red.png"))
    with_one = Prompt(messages=(Message("user", (Part("text", "Which colour? "), picture)),), reference="red")
    exported(plan_of(tmp_path, "grpo"), tmp_path / "out")
    prompts = [with_one, Prompt(messages=(Message("user", "And this?"),), reference="none")]
    write_rows(tmp_path / "out" / "train.parquet", prompts, split="train", system=None, pictures=True)
    rows = rows_of(tmp_path / "out", load_tokenizer(str(BASE)), processor=object())
    (content,) = (message["content"] for message in rows[0]["raw_prompt"])
    assert [part["type"] for part in content] == ["text", "image"]
    assert content[1]["image"].size == (5, 4)
    assert rows[1]["raw_prompt"][0]["content"] == "And this?"


def answer(number: int, reference: str) -> str:
    """Right, wrong, or no number, in turn."""
    return (f"It is {reference}.", f"It is {int(reference) + 1}.", "I do not know.")[number % 3]


def scores_by_verl(out: Path, rows: list[dict[str, Any]], texts: list[str], **router: Any) -> list[dict[str, float]]:
    """As verl's reward workers ask: by the function its loader finds, all at once."""
    from verl.trainer.ppo.reward import get_custom_reward_fn

    function = get_custom_reward_fn(config_of(out))
    assert function is not None

    async def every() -> list[dict[str, float]]:
        return await asyncio.gather(*(
            function(
                data_source=row["data_source"], solution_str=text,
                ground_truth=row["reward_model"]["ground_truth"], extra_info=row["extra_info"], **router,
            )
            for row, text in zip(rows, texts, strict=True)
        ))  # fmt: skip

    return asyncio.run(every())


def ours(rows: list[dict[str, Any]], texts: list[str], reward: Any) -> list[float | None]:
    prompts = [Prompt(messages=(), reference=row["reward_model"]["ground_truth"]) for row in rows]
    said = [Completion(key="t", ids=(), text=text, logprobs=(), finish_reason="stop") for text in texts]
    return [score.value for score in build_reward(reward).score(prompts, said)]


def test_verls_loader_gets_our_score_for_a_hundred_rows(grpo: tuple[Plan, Path]) -> None:
    dataset = rows_of(grpo[1], load_tokenizer(str(BASE)))
    rows = [dataset[number] for number in range(100)]
    texts = [answer(number, row["reward_model"]["ground_truth"]) for number, row in enumerate(rows)]
    found = scores_by_verl(grpo[1], rows, texts)
    expected = ours(rows, texts, Numeric())
    assert [one["score"] for one in found] == expected
    assert 0 < sum(value or 0 for value in expected) < 100 and not any(one["unscored"] for one in found)


def test_on_gsm8k(real_data: Path, tmp_path: Path) -> None:
    """100 rows of the real file, by the rule of mathematics, which needs a package that verl's own folder hides."""
    file = str(real_data / "gsm8k_train.jsonl")
    data = {"files": [file], "num_samples": 100, "eval_fraction": 0.0, "max_length": 900}
    exported(plan_of(tmp_path, "grpo", reward={"type": "math", "after": "####"}, data=data), tmp_path / "out")
    dataset = rows_of(tmp_path / "out", load_tokenizer(str(BASE)))
    rows = [dataset[number] for number in range(100)]
    right = [row["reward_model"]["ground_truth"] for row in rows]
    texts = [f"So it is\n#### \\frac{{{n}}}{{1}}" for n in right[:50]] + [r"#### \frac{1}{7}"] * 50
    found = scores_by_verl(tmp_path / "out", rows, texts)
    assert [one["score"] for one in found] == [1.0] * 50 + [0.0] * 50
    assert not any(one["unscored"] for one in found)


def test_verls_reward_manager(grpo: tuple[Plan, Path]) -> None:
    """From token ids of a response to the score, as its reward worker does it."""
    import numpy as np
    import torch
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    tokenizer = load_tokenizer(str(BASE))
    row = rows_of(grpo[1], tokenizer)[5]
    manager = load_reward_manager(config_of(grpo[1]), tokenizer)
    ids = torch.tensor([[*tokenizer("It is 10.")["input_ids"], 2, 0, 0]])
    mask = torch.ones_like(ids)
    mask[:, -2:] = 0
    data = DataProto(
        batch=TensorDict({"responses": ids, "attention_mask": mask}, batch_size=1),
        non_tensor_batch={
            name: np.array([row[name]], dtype=object) for name in ("data_source", "reward_model", "extra_info")
        },
    )
    found = manager.loop.run_until_complete(manager.run_single(data))
    assert found == {"reward_score": 1.0, "reward_extra_info": {"score": 1.0, "unscored": 0.0}}


def test_the_command(grpo: tuple[Plan, Path]) -> None:
    """run.sh hands every override through the shell: verl prints the configuration it would run."""
    asked = subprocess.run(
        [str(grpo[1] / "run.sh"), "--cfg", "job"], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr[-2000:]
    assert "adv_estimator: grpo" in asked.stdout and "name: vllm" in asked.stdout


@pytest.fixture
def router() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Stands in for verl's reward router: a classifier that gives the length, a judge that gives 4."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, **body})
            if self.path == "/classify":
                reply: dict[str, Any] = {"data": [{"probs": [float(len(body["input"]))]}]}
            else:
                message = {"role": "assistant", "content": "Clear and right. Score: 4"}
                reply = {
                    "choices": [{"message": message, "finish_reason": "stop"}],
                    "usage": {"completion_tokens": 6, "prompt_tokens": 9},
                }
            text = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()


def test_a_reward_model_behind_verls_router(tmp_path: Path, router: tuple[str, list[dict[str, Any]]]) -> None:
    address, seen = router
    exported(plan_of(tmp_path, "grpo", reward=REWARDS["model"]), tmp_path / "out")
    tokenizer = load_tokenizer(str(BASE))
    row = rows_of(tmp_path / "out", tokenizer)[0]
    (found,) = scores_by_verl(tmp_path / "out", [row], ["It is 3."], reward_router_address=address)
    (request,) = seen
    prompt = [Message("user", row["raw_prompt"][-1]["content"])]
    answered = Renderer(tokenizer).begun(prompt, ["It is 3."])[0]
    assert request["model"] == str(BASE.resolve()) and request["use_activation"] is False
    assert tokenizer(request["input"], add_special_tokens=False)["input_ids"] == [*answered, Renderer(tokenizer).end_id]
    assert found["score"] == float(len(request["input"]))


def test_a_judge_behind_verls_router(tmp_path: Path, router: tuple[str, list[dict[str, Any]]]) -> None:
    address, seen = router
    parts = [
        {"name": "judged", "reward": {**REWARDS["judge"], "votes": 2}, "weight": 0.5},
        {"name": "right", "reward": {"type": "numeric"}},
    ]
    exported(plan_of(tmp_path, "grpo", reward={"type": "composite", "parts": parts}), tmp_path / "out")
    row = rows_of(tmp_path / "out", load_tokenizer(str(BASE)))[3]
    reference = row["reward_model"]["ground_truth"]
    (found,) = scores_by_verl(tmp_path / "out", [row], [answer(0, reference)], reward_router_address=address)
    assert found == {"score": 3.0, "unscored": 0.0, "judged": 4.0, "right": 1.0}
    assert len(seen) == 2 and {request["path"] for request in seen} == {"/v1/chat/completions"}
    assert "apples" in seen[0]["messages"][0]["content"] and seen[0]["max_tokens"] == 64


def test_a_composite_of_rules_names_its_parts(tmp_path: Path) -> None:
    parts = [
        {"name": "right", "reward": {"type": "numeric"}},
        {"name": "form", "reward": {"type": "regex", "pattern": "It is.*"}, "weight": 0.1},
    ]
    exported(plan_of(tmp_path, "grpo", reward={"type": "composite", "parts": parts}), tmp_path / "out")
    rows = [rows_of(tmp_path / "out", load_tokenizer(str(BASE)))[number] for number in range(3)]
    texts = [answer(number, row["reward_model"]["ground_truth"]) for number, row in enumerate(rows)]
    found = scores_by_verl(tmp_path / "out", rows, texts)
    assert [(one["score"], one["right"], one["form"]) for one in found] == [
        (1.1, 1.0, 1.0), (0.1, 0.0, 1.0), (0.0, 0.0, 0.0),
    ]  # fmt: skip
