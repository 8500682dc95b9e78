"""How the loop behaves: it trains, logs, evaluates, keeps the right checkpoints, and goes on where it was killed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from whet.config.train import Train
from whet.errors import RunError
from whet.objectives.loss import Loss
from whet.runs.files import read_jsonl
from whet.train.learners import TokenLearner
from whet.train.loop import Loop, evaluate_loss
from whet.train.optim import learning_rate

TIMES = ("step_seconds", "peak_memory_bytes")


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def lines(loop: Loop[Any]) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(loop.metrics.path)]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def scripted(values: list[float], name: str = "eval/loss") -> Callable[[], dict[str, float]]:
    """An evaluation that gives these values one after another."""
    remaining: Iterator[float] = iter(values)
    return lambda: {name: next(remaining)}


@pytest.fixture
def sft(make_model, make_rows, collate, make_loop) -> Callable[..., Loop[Any]]:
    def make(num: int = 10, *, model: torch.nn.Module | None = None, **settings: Any) -> Loop[Any]:
        rows = make_rows(num)
        train = {"batch_size": 4, "learning_rate": 1e-3, "precision": "fp32"} | settings.pop("train", {})
        return make_loop(model or make_model(lora=True), rows, collate(rows), Train(**train), **settings)

    return make


@pytest.mark.parametrize("lora", [False, True])
def test_every_trained_tensor_moves_in_one_step(lora: bool, sft, make_model) -> None:
    model = make_model(lora=lora)
    before, frozen = weights(model), {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    sft(model=model, train={"max_steps": 1}).fit()
    assert all(not torch.equal(before[name], after) for name, after in weights(model).items())
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if not p.requires_grad)


def test_metrics_have_every_step_and_what_design_names(sft) -> None:
    loop = sft(10, train={"epochs": 2, "warmup_steps": 2})
    position = loop.fit()
    rows = read_jsonl(loop.metrics.path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert list(rows[0]) == [
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "samples", "step_seconds", "peak_memory_bytes",
        "mean_token_accuracy", "entropy",
    ]  # fmt: skip
    assert [row["samples"] for row in rows] == [4, 4, 2, 4, 4, 2]
    assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert [row["learning_rate"] for row in rows] == [learning_rate(s, 6, loop.train) for s in range(6)]
    assert position.step == 6 and position.tokens == sum(row["tokens"] for row in rows)
    assert rows[0]["loss"] > rows[-1]["loss"]


def test_the_last_smaller_batch_trains_with_its_own_mean(sft, make_model) -> None:
    """Its gradient is that of its own rows, not scaled down as if the batch were full."""
    whole = sft(2, train={"batch_size": 2, "max_steps": 1})
    part = sft(2, train={"batch_size": 4, "max_steps": 1}, folder="part")
    whole.fit(), part.fit()
    for one, other in zip(whole.parallel.gradients[0], part.parallel.gradients[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_adamw_by_hand(sft, make_model) -> None:
    """Two steps of AdamW as printed (Loshchilov & Hutter), from the loop's own gradients and rates."""
    model = make_model(lora=True)
    theta = {name: p.double() for name, p in weights(model).items()}
    train = {"max_steps": 2, "max_grad_norm": 0.5, "weight_decay": 0.1, "betas": (0.8, 0.95), "schedule": "linear"}
    loop = sft(model=model, train=train)
    loop.fit()
    rates = [row["learning_rate"] for row in read_jsonl(loop.metrics.path)]
    m = {name: torch.zeros_like(p) for name, p in theta.items()}
    v = {name: torch.zeros_like(p) for name, p in theta.items()}
    for t, (grads, rate) in enumerate(zip(loop.parallel.gradients, rates, strict=True), start=1):
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
        assert norm > 0.5, "clipping has to do something here"
        for name, g in zip(theta, grads, strict=True):
            g = g.double() * 0.5 / (norm + 1e-6)
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.95 * v[name] + 0.05 * g.square()
            theta[name] = theta[name] * (1 - rate * 0.1)
            theta[name] = theta[name] - rate * (m[name] / (1 - 0.8**t)) / ((v[name] / (1 - 0.95**t)).sqrt() + 1e-8)
    for name, p in weights(model).items():
        torch.testing.assert_close(p.double(), theta[name], rtol=1e-5, atol=1e-7)


def test_a_step_is_surveyed_without_dropout(sft, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    monkeypatch.setattr(TokenLearner, "survey", lambda self, score, batches, parallel: modes.append(score.training))
    loop = sft(train={"max_steps": 2})
    loop.fit()
    assert modes == [False, False] and loop.model.training


def test_clipping_logs_the_norm_before(sft) -> None:
    free = sft(train={"max_steps": 1, "max_grad_norm": None}, folder="free")
    cut = sft(train={"max_steps": 1, "max_grad_norm": 1e-3}, folder="cut")
    free.fit(), cut.fit()
    assert lines(free)[0]["grad_norm"] == lines(cut)[0]["grad_norm"] > 1e-3


def test_checkpoints_latest_best_and_no_more(sft) -> None:
    loop = sft(
        40, train={"max_steps": 9, "eval_every": 2, "save_every": 3, "keep_checkpoints": 2},
        evaluate=scripted([9.0, 5.0, 4.0, 6.0, 7.0, 8.0]),
    )  # fmt: skip
    position = loop.fit()
    # Evaluations: step 0 (never best), 2 -> 5.0, 4 -> 4.0 (best), 6, 8, and the end at 9.
    assert [row["step"] for row in lines(loop) if "loss" not in row] == [0, 2, 4, 6, 8, 9]
    assert (position.best_step, position.best_value) == (4, 4.0)
    assert loop.checkpoints.steps() == [4, 6, 9]


@pytest.mark.parametrize(
    ("settings", "values", "best"),
    [
        ({}, [3.0, 2.0, 1.0, 1.0], 2),  # the first of equals
        ({"best_metric": "watch/exact/accuracy"}, [9.0, 0.2, 0.6, 0.5], 2),
        ({"best_metric": "watch/exact/accuracy", "best_mode": "min"}, [0.0, 0.2, 0.6, 0.5], 1),
        ({"best_metric": "eval/perplexity"}, [9.0, 3.0, 2.0, 4.0], 2),
        ({"best_metric": "eval/ece"}, [0.0, 0.3, 0.1, 0.2], 2),
        ({"best_metric": "eval/frac_reward_failed"}, [0.0, 0.3, 0.1, 0.2], 2),
        ({"best_metric": "eval/completions/clipped_ratio"}, [0.0, 0.3, 0.1, 0.2], 2),
        ({"best_metric": "eval/rewards/failed/mean"}, [9.0, 0.3, 0.6, 0.2], 2),
        ({}, [3.0, math.nan, 2.0, 1.0], 3),
        ({}, [3.0, 2.0, math.nan, math.nan], 1),
    ],
)
def test_which_evaluation_is_best(settings: dict[str, Any], values: list[float], best: int, sft) -> None:
    name = settings.get("best_metric", "eval/loss")
    loop = sft(40, train={"max_steps": 3, "eval_every": 1, **settings}, evaluate=scripted(values, name))
    assert loop.fit().best_step == best
    assert best in loop.checkpoints.steps()


def test_a_wrong_best_metric_is_said_before_training(sft) -> None:
    loop = sft(train={"best_metric": "eval/los"}, evaluate=scripted([1.0] * 9))
    with pytest.raises(RunError, match=r"eval/los\b.*choose from eval/loss"):
        loop.fit()
    assert all("loss" not in row for row in lines(loop))
    with pytest.raises(RunError, match="nothing is measured"):
        sft(train={"best_metric": "eval/loss"}, folder="other").fit()


def test_evaluation_leaves_training_alone(sft, make_model, collate, make_rows) -> None:
    """It may draw random numbers; dropout after it must not notice."""
    drawn: list[torch.Tensor] = []

    def evaluate() -> dict[str, float]:
        drawn.append(torch.rand(3))
        return {"eval/loss": 1.0}

    def noisy() -> torch.nn.Module:
        return make_model(lora=True, dropout=0.3)

    watched = sft(model=noisy(), train={"max_steps": 4, "eval_every": 1}, evaluate=evaluate, folder="watched")
    alone = sft(model=noisy(), train={"max_steps": 4}, folder="alone")
    watched.fit(), alone.fit()
    assert len(drawn) == 5
    assert [row for row in lines(watched) if "loss" in row] == lines(alone)
    assert_same(weights(watched.model), weights(alone.model))


def test_evaluate_loss_is_the_mean_over_tokens_without_dropout(sft, make_model, make_rows, collate) -> None:
    rows = make_rows(7)
    loop = sft(model=make_model(lora=True, dropout=0.5))
    model = loop.model.eval()
    batch = collate(rows)
    whole = evaluate_loss(model, loop.learner, [batch(range(7))], loop.parallel)
    split = evaluate_loss(model, loop.learner, [batch(range(3)), batch(range(3, 7))], loop.parallel)
    assert set(whole) == {"eval/loss", "eval/entropy", "eval/mean_token_accuracy"}
    assert whole["eval/loss"] == pytest.approx(split["eval/loss"], rel=1e-6)


class Spoiled:
    """A formula that turns its loss into NaN, or only its gradient, from the n-th call on."""

    def __init__(self, calls: int, *, gradient_only: bool) -> None:
        self.calls, self.gradient_only = calls, gradient_only

    def __call__(self, logprobs: torch.Tensor, token_weights: torch.Tensor) -> Loss:
        self.calls -= 1
        total = -(token_weights * logprobs).sum()
        if self.calls >= 0:
            return Loss(total)
        if self.gradient_only:
            zero = total - total.detach()
            return Loss(total + (zero.square()).sqrt())  # 0 forward, 0/0 backward
        return Loss(total * math.nan)


@pytest.mark.parametrize("gradient_only", [False, True])
def test_numbers_that_are_none_stop_the_run(gradient_only: bool, sft) -> None:
    """One line to act on, and no checkpoint that holds NaN."""
    loop = sft(
        40, train={"max_steps": 6, "save_every": 1}, learner=TokenLearner(Spoiled(3, gradient_only=gradient_only))
    )
    with pytest.raises(RunError, match=r"train.learning_rate: .* is nan at step 4 .*lower it"):
        loop.fit()
    assert loop.checkpoints.steps() == [2, 3]
    from safetensors.torch import load_file

    saved = load_file(next(loop.checkpoints.folder(3).rglob("adapter_model.safetensors")))
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert [row["step"] for row in lines(loop)] == [1, 2, 3]


# --- resume -----------------------------------------------------------------------------------------------------------


def reloaded(loop: Loop[Any], base: torch.nn.Module) -> torch.nn.Module:
    """The model as a new process loads it: the untouched base with the newest checkpoint's adapter, or its weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = loop.checkpoints.folder(loop.checkpoints.latest().step) / "model"
    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(copy.deepcopy(base).unload(), folder, is_trainable=True).train()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def die_at(loop: Loop[Any], step: int) -> None:
    """Let the process "die" right after the line of `step` was written, before anything is saved."""
    write = loop.metrics.write

    def writing(row: Mapping[str, Any]) -> None:
        write(row)
        if row["step"] == step:
            raise Killed

    loop.metrics.write = writing  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.fit()
    loop.metrics.close()


@pytest.mark.parametrize(
    ("lora", "dropout", "dtype"),
    [
        (True, 0.3, torch.float32),
        (False, 0.0, torch.float32),
        (True, 0.3, torch.bfloat16),
        (True, 0.3, torch.float16),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 5])
def test_resumed_bit_for_bit(lora: bool, dropout: float, dtype: torch.dtype, step: int, sft, make_model) -> None:
    """Weights, optimiser, random state, order of rows, schedule, best checkpoint and log of a run killed on its way."""
    model = make_model(lora=lora, dropout=dropout)
    settings: dict[str, Any] = {
        "num": 10, "dtype": dtype, "train": {"epochs": 3, "save_every": 2, "eval_every": 2, "weight_decay": 0.01},
    }  # fmt: skip
    evaluations = [5.0, 3.0, 4.0, 2.0, 6.0, 7.0]
    straight = sft(model=copy.deepcopy(model), folder="straight", evaluate=scripted(evaluations), **settings)
    expected = straight.fit()
    killed = sft(model=copy.deepcopy(model), folder="killed", evaluate=scripted(evaluations), **settings)
    die_at(killed, step)
    saved = killed.checkpoints.latest()
    assert saved is None or saved.step == step - 1
    start = copy.deepcopy(model) if saved is None else reloaded(killed, model)
    torch.manual_seed(12345)  # a new process has another random state
    done = [0, 2, 4].index(saved.step if saved else 0) + 1 if saved else 0
    again = sft(model=start, folder="killed", evaluate=scripted(evaluations[done:]), **settings)
    assert again.fit() == expected
    assert lines(again) == lines(straight)
    assert_same(weights(again.model), weights(straight.model))
    assert again.checkpoints.steps() == straight.checkpoints.steps()
    for one in sorted(straight.checkpoints.folder(8).rglob("*.safetensors")):
        other = again.checkpoints.folder(8) / one.relative_to(straight.checkpoints.folder(8))
        assert one.read_bytes() == other.read_bytes(), one.name


def test_a_finished_training_only_reports(sft, make_model) -> None:
    model = make_model(lora=True)
    first = sft(model=model, train={"max_steps": 2})
    end = first.fit()
    before = first.metrics.path.read_bytes()
    second = sft(model=reloaded(first, make_model(lora=True)), train={"max_steps": 2})
    assert replace(second.fit()) == end
    assert second.metrics.path.read_bytes() == before


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_trains_fp32_weights(dtype: torch.dtype, sft, make_model) -> None:
    exact, rough = (sft(folder=str(d), dtype=d, train={"epochs": 4}) for d in (torch.float32, dtype))
    exact.fit(), rough.fit()
    assert all(p.dtype == torch.float32 for p in weights(rough.model).values())
    for one, other in zip(lines(exact), lines(rough), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.03)


def test_fp16_leaves_out_a_step_that_overflows(sft) -> None:
    """The gradient overflows under a huge scale: the step is skipped, the scale halved, and training goes on."""
    loop = sft(dtype=torch.float16, train={"max_steps": 12})
    loop.parallel.restore_scaler({**loop.parallel.scaler, "scale": 2.0**22})
    before = weights(loop.model)
    loop.fit()
    rows = lines(loop)
    assert rows[0]["grad_norm"] is None, "infinite before it was scaled down"
    assert loop.parallel.scaler["scale"] < 2.0**22
    assert math.isfinite(rows[-1]["grad_norm"])
    assert any(not torch.equal(before[name], after) for name, after in weights(loop.model).items())


def test_fp16_scaler_survives_a_checkpoint(sft) -> None:
    loop = sft(dtype=torch.float16, train={"max_steps": 3})
    loop.parallel.restore_scaler({**loop.parallel.scaler, "scale": 64.0})
    loop.fit()
    state = loop.checkpoints.latest().scaler
    assert state["scale"] == 64.0
    assert state["_growth_tracker"] == 3
    other = sft(dtype=torch.float16, folder="other")
    other.parallel.restore_scaler(state)
    assert other.parallel.scaler == state


def test_leftovers_of_a_killed_save_are_not_checkpoints(sft, tmp_path: Path) -> None:
    root = tmp_path / "stage" / "checkpoints"
    (root / ".step-000003.tmp" / "model").mkdir(parents=True)
    (root / ".step-000003.tmp" / "optimizer.safetensors").write_bytes(b"torn")
    loop = sft(train={"max_steps": 3})
    assert loop.checkpoints.latest() is None
    loop.fit()
    assert loop.checkpoints.steps() == [3]
    assert not (root / ".step-000003.tmp").exists()


@pytest.mark.parametrize("file", ["optimizer.safetensors", "model/adapter_model.safetensors"])
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(
    file: str, sft, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft(train={"max_steps": 2, "save_every": 1}).fit()
    path = tmp_path / "stage" / "checkpoints" / "step-000002" / file
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    checkpoints = sft(train={"max_steps": 2, "save_every": 1}).checkpoints
    assert checkpoints.latest().step == 1 and checkpoints.steps() == [1]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"step-000002: left out, {file} is damaged" in told[0]
