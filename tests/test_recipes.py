"""The recipes load, and those that need no model hub do what they say for a few steps.

Small versions of them: fewer rows, steps and layers, the sections that a recipe is about as they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import whet
from whet.runs.files import read_json, read_jsonl

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))
PLAYGROUND = [path for path in RECIPES if "data/playground/" in path.read_text(encoding="utf-8")]
TINY = (
    "train.precision=fp32", "train.batch_size=4", "train.max_steps=2", "data.max_length=256",
    "data.num_samples=12", "rollout.max_new_tokens=8", "rollout.batch_size=16",
)  # fmt: skip

OTHERWISE = {
    "reject": ("stages.reject.reward={type: regex, pattern: '.*[a-e].*'}", "stages.reject.accept.cut=true"),
}
"""Of a recipe's small version: few steps teach nothing, and what a model says in 8 tokens is never all right."""


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder to start recipes in: the playground's files and the base model are where recipes name them."""
    folder = tmp_path_factory.mktemp("recipes")
    script = repository / "recipes" / "playground.py"
    subprocess.run([sys.executable, str(script), "--num", "40"], cwd=folder, check=True, capture_output=True)
    (folder / "whet").symlink_to(repository / "whet")
    return folder


def tiny(recipe: Path, *overrides: str) -> whet.Plan:
    """The recipe with few rows and steps, set in every stage that has the section: what a stage says itself wins."""
    small = [
        f"stages.{stage.name}.{text}"
        for stage in whet.Plan.load(recipe).stages
        for text in TINY
        if text.partition(".")[0] in type(stage).model_fields
    ]
    return whet.Plan.load(recipe, ["model.lora.rank=4", *small, *overrides])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_runs_where_its_name_says(recipe: Path) -> None:
    plan = whet.Plan.load(recipe)
    assert plan.run == f"runs/{recipe.stem}"
    assert whet.Plan.load(json.loads(json.dumps(plan.model_dump(mode="json")))) == plan, "as JSON it is the same plan"


def test_recipes_that_documents_point_to_are_there() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"real_text", "preferences_to_ppo", "sft_reward_ppo", "grpo", "gsm8k_grpo", "reject"}


@pytest.mark.parametrize("recipe", PLAYGROUND, ids=lambda path: path.stem)
def test_recipe_on_the_playground_runs(recipe: Path, playground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(playground)
    summary = whet.run(tiny(recipe, *OTHERWISE.get(recipe.stem, ())))
    assert [stage["status"] for stage in summary["stages"]] == ["done"] * len(summary["stages"])
    for stage in summary["stages"]:
        if stage["kind"] in ("grpo", "ppo"):
            assert stage["metrics"]["steps"] == 2 and "eval/reward" in stage["metrics"]


def test_preferences_to_ppo_stops_behind_the_reward_model_and_goes_on(
    playground: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(playground)
    plan = tiny(repository / "recipes" / "preferences_to_ppo.yaml", "run=runs/dry")
    assert [stage["status"] for stage in whet.run(plan, until="reward")["stages"]] == ["done", "waiting"]
    assert Path("runs/dry/stages/01-reward/adapter").is_dir() and not Path("runs/dry/stages/02-ppo").exists()
    whet.run(plan)
    steps = [row for row in read_jsonl(Path("runs/dry/stages/02-ppo/metrics.jsonl")) if "loss" in row]
    # The keys that the workflow it comes from prints for every step.
    for key in ("step", "epoch", "reward", "objective/kl", "objective/kl_weight", "policy_loss", "loss/value_avg"):
        assert key in steps[0], key
    # Policy and reference agree in the first round, far below the target: 4 responses of 200 take 20 % x 4 / 200 off.
    assert steps[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert steps[0]["objective/kl_weight"] == pytest.approx(0.02 * (1 - 0.2 * 4 / 200))


def test_gsm8k_grpo_runs_20_steps_on_the_real_file(
    real_data: Path, repository: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    file = real_data / "gsm8k_train.jsonl"
    if not file.is_file():
        pytest.skip(f"not found: {file}")
    small = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 512}
    summary = whet.run(
        whet.Plan.load(
            repository / "recipes" / "gsm8k_grpo.yaml",
            [
                f"data.files={file}", f"model.build.files=[{file}]", "data.num_samples=60", "data.max_length=1024",
                "sft.train.max_steps=2", "sft.train.batch_size=4", "train.precision=fp32", "grpo.train.max_steps=20",
                "grpo.train.batch_size=2", "grpo.rollout.group_size=2", "grpo.rollout.max_new_tokens=8",
                "grpo.train.eval_every=10", "grpo.data.eval_fraction=0.1",
                *(f"model.build.{key}={value}" for key, value in small.items()),
            ],
        )
    )  # fmt: skip
    metrics: dict[str, Any] = summary["stages"][1]["metrics"]
    assert metrics["steps"] == 20 and {"eval/reward", "rewards/right/mean", "rewards/form/mean"} <= metrics.keys()
    assert "full marks for all" in capsys.readouterr().out
    assert read_json(Path("runs/gsm8k_grpo/stages/02-grpo/data.json"))["rows"]["train"] > 0


def test_the_flat_loop_runs(repository: Path, tmp_path: Path) -> None:
    """`examples/grpo.py` from an adapter that changes nothing yet."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(repository / "whet" / "demo" / "base")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(base, lora).save_pretrained(tmp_path / "sft")
    done = subprocess.run(
        [
            sys.executable, str(repository / "examples" / "grpo.py"), "--sft", str(tmp_path / "sft"), "--out",
            str(tmp_path / "out"), "--rounds", "1", "--prompts", "2", "--group-size", "2", "--heldout", "2",
        ],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "round   1 of 1" in done.stdout and (tmp_path / "out" / "adapter_config.json").is_file()
