"""Online RL through the real engine, scoring core, loop and checkpoints, on a tiny checkpoint."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import RecordingParallel
from whet.config import policy as plan
from whet.config.model import Lora, Model
from whet.config.policy import PolicyObjective
from whet.config.rollout import Rollout
from whet.config.train import Train
from whet.data.render import Renderer
from whet.errors import RunError
from whet.experience.round_file import Round
from whet.experience.rounds import Rounds
from whet.models.load import end_ids, load_model, load_tokenizer, save_trained
from whet.models.reference import by_adapter
from whet.models.scoring import TokenScorer
from whet.models.value import PolicyScorer, ValueHead, fresh_value_head, load_value_head, save_value_head
from whet.rollout.native import NativeEngine
from whet.runs.files import read_jsonl
from whet.runs.sinks import MetricsFile
from whet.schema.artifacts import ModelRef
from whet.schema.packed import Packed
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion, Score
from whet.train.bind_policy import policy_learning
from whet.train.checkpoint import Checkpoints
from whet.train.loop import Loop
from whet.train.measuring import Measuring
from whet.train.online import OnlineFeed
from whet.train.policy import Measure, PolicyLearner, policy_logprobs, policy_values
from whet.train.rounds import RoundOrder

LONGEST = 8
PROMPTS = [
    Prompt(messages=(Message("user", f"{word} is"),)) for word in ("Paris", "Score", "12", "plum", "Die", "apple")
]


@dataclass
class Share:
    """The share of a text's characters that are letters; `failing` completions have no reward."""

    constant: float | None = None
    failing: str = ""
    asked: int = 0

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        self.asked += len(completions)
        return [self._one(completion) for completion in completions]

    def _one(self, completion: Completion) -> Score:
        if self.failing and completion.key.endswith(self.failing):
            return Score(value=None, error="no answer")
        share = sum(map(str.isalpha, completion.text)) / max(1, len(completion.text))
        value = share if self.constant is None else self.constant
        return Score(value=value, parts={"letters": share})


@dataclass
class Training:
    """One online training in a folder, which a second one may go on from."""

    base: Path
    folder: Path
    objective: PolicyObjective
    reward: Share
    max_steps: int = 8
    micro_batch_tokens: int = 10_000
    save_every: int = 3
    dtype: torch.dtype = torch.float32
    staleness: int = 0
    whole: bool = True
    logged: list[Mapping[str, Any]] = field(default_factory=list)
    at_save: Callable[[], None] = lambda: None
    measured_rows: int = 0
    """Responses that the trainer measured before a round's training."""

    def counted(self, measure: Measure) -> Measure:
        def counting(packed: Packed) -> torch.Tensor:
            self.measured_rows += packed.num_rows
            return measure(packed)

        return counting

    def run(self, stop_after: int | None = None) -> RecordingParallel:
        checkpoints = Checkpoints(self.folder / "checkpoints", keep=2)
        position = checkpoints.latest()
        adapter = None if position is None else str(checkpoints.folder(position.step) / "adapter")
        config = Model(path=str(self.base), lora=Lora(rank=4, alpha=8))
        tokenizer = load_tokenizer(str(self.base))
        model = load_model(
            ModelRef(path=str(self.base), adapter=adapter), config, dtype=self.dtype, trainable=True, seed=1
        )
        policy, parallel = TokenScorer(model), RecordingParallel(self.dtype)
        scorer: TokenScorer | PolicyScorer = policy
        if self.objective.needs_values:
            folder = None if position is None else checkpoints.folder(position.step)
            head = fresh_value_head(model) if folder is None else load_value_head(model, folder)
            scorer = PolicyScorer(policy, head)
        renderer = Renderer(tokenizer)
        engine = NativeEngine(model, tokenizer, batch_size=16, end_ids=end_ids(tokenizer, model), dtype=self.dtype)
        rollout = Rollout(group_size=4, max_new_tokens=LONGEST, temperature=1.0, top_p=1.0)
        learning = policy_learning(self.objective, max_new_tokens=LONGEST)
        train = Train(
            batch_size=3, max_steps=self.max_steps, learning_rate=3e-2, warmup_steps=0, schedule="constant",
            save_every=self.save_every, max_grad_norm=None,
        )  # fmt: skip
        order = RoundOrder(
            Rounds(
                engine=engine, renderer=renderer, reward=self.reward, rollout=rollout, prompts=PROMPTS,
                folder=self.folder / "rounds", replace_equal=self.objective.replaces_equal,
            ),
            engine.sync, num_prompts=len(PROMPTS), batch_size=3, epochs=1, max_steps=self.max_steps,
            steps_per_round=self.objective.passes * self.objective.minibatches, seed=0, staleness=self.staleness,
        )  # fmt: skip
        several = order.steps_per_round > 1
        wanted = several or self.staleness or learning.reward_penalty is not None
        measuring = Measuring(
            policy=self.counted(policy_logprobs(policy, 1.0)) if wanted else None,
            reference=by_adapter(policy, None) if self.objective.needs_reference else None,
            values=policy_values(scorer) if isinstance(scorer, PolicyScorer) else None,
            whole=self.whole, stale=self.staleness > 0, several_steps=several,
            micro_batch_tokens=self.micro_batch_tokens, seed=0, parallel=parallel, folder=self.folder / "measured",
        )  # fmt: skip
        feed = OnlineFeed(
            order, renderer, self.objective, learning, measuring, micro_batch_tokens=self.micro_batch_tokens, seed=0,
            parallel=parallel, folder=self.folder / "measured", log=self.logged.append,
        )  # fmt: skip

        def save(path: Path) -> None:
            self.at_save()
            save_trained(model, tokenizer, path / "adapter")
            if isinstance(scorer, PolicyScorer) and isinstance(scorer.value, ValueHead):
                save_value_head(scorer.value, path)

        with MetricsFile(self.folder / "metrics.jsonl") as metrics:
            loop = Loop(
                model=scorer, learner=PolicyLearner(learning, temperature=1.0), feed=feed, train=train,
                parallel=parallel, checkpoints=checkpoints, save_model=save, metrics=metrics,
            )  # fmt: skip
            if stop_after is not None:
                step = loop._step

                def killed(number: int) -> dict[str, Any]:
                    if number == stop_after:
                        raise KeyboardInterrupt
                    return step(number)

                loop._step = killed  # type: ignore[method-assign]
            loop.fit()
        return parallel


def final_weights(training: Training) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(training.folder / f"checkpoints/step-{training.max_steps:06d}/adapter/adapter_model.safetensors")


def metrics(training: Training) -> list[dict[str, Any]]:
    """Lines without what the clock and the machine say."""
    rows = read_jsonl(training.folder / "metrics.jsonl")
    return [
        {name: value for name, value in row.items() if "seconds" not in name and name != "peak_memory_bytes"}
        for row in rows
    ]


def rounds(training: Training) -> list[list[dict[str, Any]]]:
    return [read_jsonl(path)[:-1] for path in sorted((training.folder / "rounds").iterdir())]


OBJECTIVES = [
    plan.Grpo(num_iterations=2, minibatches=3),
    plan.Gspo(minibatches=1),
    plan.Rloo(),
    plan.ReinforcePlusPlusBaseline(),
    plan.Dapo(),
    plan.Ppo(epochs=2, minibatches=2, adaptive_kl=plan.AdaptiveKlWeight(target=0.01, horizon=20.0)),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.type)
@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_a_killed_training_goes_on_to_the_same_bytes(
    objective: PolicyObjective, stop_after: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Killed before the first checkpoint, and within a round whose rollouts an older policy drew."""
    whole = Training(tiny_checkpoint, tmp_path / "whole", objective, Share())
    whole.run()
    broken = Training(tiny_checkpoint, tmp_path / "broken", objective, Share())
    with pytest.raises(KeyboardInterrupt):
        broken.run(stop_after)
    broken.run()
    ours, theirs = final_weights(broken), final_weights(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(broken) == metrics(whole)
    assert rounds(broken) == rounds(whole)
    assert broken.reward.asked == whole.reward.asked, "no completion was scored twice"


@pytest.mark.parametrize("objective", [plan.Grpo(minibatches=2), plan.DrGrpo(), plan.Cispo()], ids=lambda o: o.type)
def test_the_gradient_does_not_depend_on_micro_batches(
    objective: PolicyObjective, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    gradients = [
        Training(tiny_checkpoint, tmp_path / str(size), objective, Share(), max_steps=1, micro_batch_tokens=size)
        .run()
        .gradients[0]
        for size in (10_000, 40, 1)
    ]
    expected = torch.cat([gradient.flatten() for gradient in gradients[0]])
    assert float(expected.norm()) > 1e-3
    for other in gradients[1:]:
        found = torch.cat([gradient.flatten() for gradient in other])
        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_equal_rewards_leave_the_weights_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    training = Training(tiny_checkpoint, tmp_path, plan.Grpo(kl_weight=0.0), Share(constant=0.5), max_steps=2)
    for gradients in training.run().gradients:
        assert all(not gradient.any() for gradient in gradients)
    assert metrics(training)[0]["frac_reward_zero_std"] == 1.0


def test_a_completion_without_a_reward_is_in_no_batch_and_no_count(tiny_checkpoint: Path, tmp_path: Path) -> None:
    training = Training(tiny_checkpoint, tmp_path, plan.Grpo(kl_weight=0.04), Share(failing="#2"), max_steps=1)
    training.run()
    (row,) = metrics(training)
    assert row["samples"] == 9, "of three prompts' four samples three each"
    assert row["frac_reward_failed"] == pytest.approx(0.25)
    failed = [line for line in rounds(training)[0] if line["reward"] is None]
    assert len(failed) == 3 and {line["reward_error"] for line in failed} == {"no answer"}


def test_old_logprobs_are_the_policys_at_the_start_of_the_round(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In the first step of a round the ratio is 1 everywhere, in the second it is not."""
    training = Training(tiny_checkpoint, tmp_path, plan.Grpo(num_iterations=2, kl_weight=0.0), Share(), max_steps=4)
    training.run()
    drift = [row["policy/approxkl_avg"] for row in metrics(training)]
    assert max(drift[0], drift[2]) < 1e-10 and min(drift[1], drift[3]) > 1e-9
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-5 for row in metrics(training)[::2])


def test_a_round_without_a_signal_asks_for_other_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Of six prompts three have equal rewards always: DAPO's round is made of the others."""

    class Uneven(Share):
        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
            dull = [PROMPTS.index(prompt) < 3 for prompt in prompts]
            scores = super().score(prompts, completions)
            return [Score(value=1.0) if flat else score for flat, score in zip(dull, scores, strict=True)]

    training = Training(tiny_checkpoint, tmp_path, plan.Dapo(), Uneven(), max_steps=2)
    training.run()
    for made in rounds(training):
        assert {line["place"] for line in made if line["trained"]} == {3, 4, 5}
    assert sum(row["left_out_prompts"] for row in metrics(training)) > 0


def test_a_round_is_read_as_it_was_made(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    model = load_model(ModelRef(path=str(tiny_checkpoint)), Model(path=str(tiny_checkpoint)), dtype=torch.float32)
    engine = NativeEngine(model, tokenizer, batch_size=8, end_ids=end_ids(tokenizer, model))
    synced: list[int] = []

    def make() -> Round:
        made = Rounds(
            engine=engine, renderer=Renderer(tokenizer), reward=Share(failing="#1"), rollout=Rollout(max_new_tokens=4),
            prompts=PROMPTS, folder=tmp_path,
        )  # fmt: skip
        return made.make(3, [4, 1], lambda: synced.append(1))

    first, second = make(), make()
    assert first == second and synced == [1]
    assert [group.prompt for group in first.groups] == [PROMPTS[4], PROMPTS[1]]
    shutil.copy(tmp_path / "000003.jsonl", tmp_path / "copy")
    assert json.loads((tmp_path / "copy").read_text().splitlines()[-1])["round"] == 3


def test_a_step_without_anything_to_learn_is_a_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """RAFT keeps a prompt's best response, and of equals that is worth nothing there is none."""
    training = Training(tiny_checkpoint, tmp_path, plan.Raft(), Share(constant=-math.inf), max_steps=1)
    with pytest.raises(RunError, match="no completion of round 0 has a reward"):
        training.run()
    shutil.rmtree(tmp_path)
    thin = Training(tiny_checkpoint, tmp_path, plan.Grpo(minibatches=5, kl_weight=0.0), Share(), max_steps=5)
    gradients = thin.run().gradients
    assert [row["samples"] for row in metrics(thin)].count(0) == 2, "three prompts in five minibatches"
    assert len(gradients) == 3, "a step without prompts is none of the optimiser's"
    assert [row["grad_norm"] == 0.0 for row in metrics(thin)].count(True) == 2


def test_prompts_drawn_in_place_of_others_are_the_same_in_a_run_that_was_killed(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """DAPO with rounds drawn ahead: what replaces prompts without a signal is drawn when the round is put together,
    with the weights of that moment, whatever the engine had before."""

    class Uneven(Share):
        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
            scores = super().score(prompts, completions)
            dull = [PROMPTS.index(prompt) < 4 for prompt in prompts]
            return [Score(value=1.0) if flat else score for flat, score in zip(dull, scores, strict=True)]

    def training(name: str) -> Training:
        objective = plan.Dapo(num_iterations=2)
        return Training(tiny_checkpoint, tmp_path / name, objective, Uneven(), staleness=1, save_every=2)

    whole, broken = training("whole"), training("broken")
    whole.run()
    versions = [{line["policy_version"] for line in made} for made in rounds(whole)]
    assert any(len(found) > 1 for found in versions), "some prompts were replaced"
    for stop_after in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            broken.run(stop_after)
    broken.run()
    ours, theirs = final_weights(broken), final_weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(broken) == metrics(whole) and rounds(broken) == rounds(whole)


def test_rollouts_of_other_prompts_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    training = Training(tiny_checkpoint, tmp_path, plan.Grpo(kl_weight=0.0), Share(), max_steps=1)
    training.run()
    file = tmp_path / "rounds" / "000000.jsonl"
    file.write_text(file.read_text().replace('"key": "0/', '"key": "0/f'))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(RunError, match="rollouts of other prompts"):
        training.run()


def test_the_engines_log_probs_are_taken_where_a_sample_says_they_are_the_trainers(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Three prompts of four samples a round: one prompt is checked, the rest need no pass."""
    objective = plan.Grpo(num_iterations=2, kl_weight=0.0)
    trusting = Training(tiny_checkpoint, tmp_path / "a", objective, Share(), max_steps=4)
    trusting.run()
    assert trusting.measured_rows == 2 * 4
    drifts = [row["sampling/checked_logp_difference/max"] for row in metrics(trusting)[::2]]
    assert all(0 <= drift <= 1e-4 for drift in drifts)
    wary = Training(tiny_checkpoint, tmp_path / "b", objective, Share(), max_steps=4, whole=False)
    wary.run()
    assert wary.measured_rows == 2 * 12
    ours, theirs = final_weights(trusting), final_weights(wary)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_an_engine_of_other_arithmetic_is_not_believed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In bf16 decoding rounds otherwise than the packed pass: every response is measured, each of them once."""
    training = Training(
        tiny_checkpoint, tmp_path, plan.Grpo(num_iterations=2, kl_weight=0.0), Share(), max_steps=2,
        dtype=torch.bfloat16,
    )  # fmt: skip
    training.run()
    drift = metrics(training)[0]["sampling/checked_logp_difference/max"]
    assert drift > 1e-4 and training.measured_rows == 12


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_rounds_drawn_ahead_go_on_to_the_same_bytes(stop_after: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With a staleness of 1 a round is drawn with the weights of the round before, also in a run that was killed."""
    objective = plan.Grpo(num_iterations=2, kl_weight=0.0)
    whole = Training(tiny_checkpoint, tmp_path / "whole", objective, Share(), staleness=1)
    whole.run()
    versions = [{line["policy_version"] for line in made} for made in rounds(whole)]
    assert versions == [{0}, {0}, {2}, {4}]
    broken = Training(tiny_checkpoint, tmp_path / "broken", objective, Share(), staleness=1)
    with pytest.raises(KeyboardInterrupt):
        broken.run(stop_after)
    broken.run()
    ours, theirs = final_weights(broken), final_weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(broken) == metrics(whole) and rounds(broken) == rounds(whole)


def test_a_checkpoint_waits_for_the_round_that_is_drawn_ahead(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A run that goes on from it has the weights that drew the round no more."""

    class Slow(Share):
        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
            time.sleep(0.5)
            return super().score(prompts, completions)

    scored: list[bool] = []

    def look() -> None:
        """The round behind the one that is trained on is there, rewards and all."""
        rows = [row for path in (tmp_path / "rounds").glob("000001*") for row in read_jsonl(path) if "key" in row]
        scored.append(bool(rows) and all(row["reward"] is not None for row in rows))

    training = Training(
        tiny_checkpoint, tmp_path, plan.Grpo(num_iterations=2, kl_weight=0.0), Slow(), max_steps=4, staleness=1,
        save_every=1, at_save=look,
    )  # fmt: skip
    training.run()
    assert scored == [True] * 4


def test_completions_are_logged_once_with_their_advantage(tiny_checkpoint: Path, tmp_path: Path) -> None:
    training = Training(
        tiny_checkpoint, tmp_path, plan.Grpo(num_iterations=2, kl_weight=0.0), Share(failing="#1"), max_steps=4
    )
    training.run()
    assert [row["step"] for row in training.logged] == [1] * 12 + [3] * 12
    for row in training.logged:
        assert (row["advantage"] is None) == (row["reward"] is None) == row["key"].endswith("#1")
        assert row["error"] == ("no answer" if row["reward"] is None else None)
    first = [row for row in training.logged[:4] if row["reward"] is not None]
    assert abs(sum(row["advantage"] for row in first)) < 1e-4, "centred over the prompt's known rewards"
