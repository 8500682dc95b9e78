"""What TRL 1.16 makes of rewards and of the sampler's log-probs: advantages, metrics, corrections; else skipped.

TRL's trainers run up to their advantages, their model and their sampling left out. Standard deviations are
Bessel-corrected in both; TRL adds 1e-4, we 1e-6 unless told.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.objectives.tokens import random_tokens
from tests.oracles.padded import mask, of, padded
from tests.oracles.policy_trainer import LENGTHS, stub
from whet.objectives.advantages import group_advantages, leave_one_out, reward_metrics
from whet.objectives.aggregation import TokenMean
from whet.objectives.credit import Rollouts, response_credit
from whet.objectives.importance import sequence_weights, token_weights
from whet.objectives.kl import k1
from whet.objectives.policy import policy_loss
from whet.objectives.surrogate import likelihood

trl = pytest.importorskip("trl", minversion="1.16.0")


def sampled(family: Any, rewards: torch.Tensor, **settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What a trainer makes of two groups of four responses with these rewards [8, 1], its model left out."""
    from accelerate import PartialState

    PartialState(cpu=True)
    tokens = random_tokens(LENGTHS, 6)
    found = stub(tokens, **settings)
    given = {
        "environment_factories": None, "environments": None, "tools": None, "pad_to_multiple_of": None,
        "mask_truncated_completions": False,
        "_tokenizer": SimpleNamespace(pad_token_id=0), "num_generations": 4, "num_iterations": 1,
        "_calculate_rewards": lambda *_: rewards, "reward_func_names": ["f"], "reward_funcs": [None],
        "reward_weights": torch.ones(1), "multi_objective_aggregation": "sum_then_normalize", "scale_rewards": "group",
        "log_multimodal": False, "log_completions": False, "_pending_extra_logs": {}, "_pending_metrics": {},
        "ref_model": object(), "reward_clip_range": None, "normalize_advantages": False,
        "_logs": defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        **settings,
    }  # fmt: skip
    vars(found).update(given)
    found.accelerator.process_index = 0
    found.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    found.args = SimpleNamespace(
        per_device_train_batch_size=8, steps_per_generation=1, gradient_accumulation_steps=1,
        gradient_checkpointing_kwargs=None,
    )  # fmt: skip
    ids = [[1] * length for length in LENGTHS]
    drawn = [of(tokens, "sampler_logprobs")[n, :length].tolist() for n, length in enumerate(LENGTHS)]
    policy, reference = of(tokens, "old_logprobs", fill=-1.5), of(tokens, "reference_logprobs", fill=-0.5)
    found._get_per_token_logps_and_entropies = lambda model, *_, **__: (
        reference if model is found.ref_model else policy, None, None,
    )  # fmt: skip
    if family is trl.GRPOTrainer:
        found._generate = lambda prompts: ([[1]] * 8, ids, None, [""] * 8, drawn, {}, None, None)
    else:
        found._generate = lambda prompts: ([[1]] * 8, ids, [""] * 8)
    out = family._generate_and_score_completions(found, [{"prompt": "p"}] * 8)
    return out, {name: values[0] for name, values in found._metrics["train"].items()}


NAN = math.nan
REWARDS = {
    "plain": [1.0, 0.0, 0.5, 2.0, -1.0, 0.0, 0.0, 3.0],
    "one group equal": [1.0, 0.0, 0.5, 2.0, 0.3, 0.3, 0.3, 0.3],
    "some failed": [1.0, NAN, 0.5, 2.0, NAN, 0.0, NAN, 3.0],
    "one known": [1.0, NAN, NAN, NAN, NAN, 0.0, 1.0, 3.0],
}
GROUPS = torch.arange(2).repeat_interleave(4)


@pytest.mark.parametrize("name", list(REWARDS))
@pytest.mark.parametrize("scale", ["group", "none"])
def test_group_advantages(name: str, scale: str) -> None:
    rewards = torch.tensor(REWARDS[name])
    out, logged = sampled(trl.GRPOTrainer, rewards[:, None], scale_rewards=scale)
    found = group_advantages(rewards, GROUPS, divide_by_std=scale == "group", epsilon=1e-4)
    torch.testing.assert_close(found, out["advantages"], rtol=1e-5, atol=1e-6)
    ours = {key: float(metric.total) / metric.count for key, metric in reward_metrics(rewards, GROUPS).items()}
    assert ours["reward"] == pytest.approx(logged["reward"])
    if name != "one known":  # its deviation is NaN in TRL, and the group does not count as one without a signal
        assert ours["frac_reward_zero_std"] == pytest.approx(logged["frac_reward_zero_std"])


@pytest.mark.parametrize("name", list(REWARDS))
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_leave_one_out(name: str, beta: float) -> None:
    rewards = torch.tensor(REWARDS[name])
    out, _ = sampled(trl.RLOOTrainer, rewards[:, None], beta=beta)
    if beta == 0.0:
        found = leave_one_out(rewards, GROUPS)
    else:
        tokens = random_tokens(LENGTHS, 6)
        assert tokens.reference_logprobs is not None
        penalty = beta * k1(tokens.old_logprobs, tokens.reference_logprobs)
        drawn = Rollouts(
            rewards=rewards, groups=GROUPS, rows=tokens.rows, lengths=tokens.lengths, penalty=penalty.float()
        )
        whole = response_credit(drawn, baseline=leave_one_out).tokens
        found = whole[tokens.lengths.cumsum(0) - 1]
    torch.testing.assert_close(found, out["advantages"].to(found), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize("floor", [None, 0.8])
def test_importance_correction(mode: str, floor: float | None) -> None:
    out, logged = sampled(
        trl.GRPOTrainer, torch.zeros(8, 1), use_vllm=True, vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=1.2,
        vllm_importance_sampling_clip_min=floor,
    )  # fmt: skip
    tokens = random_tokens(LENGTHS, 6)
    level, beyond = mode.split("_")
    weights = token_weights if level == "token" else sequence_weights
    found = weights(tokens, beyond=beyond, cap=1.2, floor=floor or 0.0)
    expected = out["importance_sampling_ratio"].to(torch.float64).expand(8, max(LENGTHS))
    ours = padded(found.values, tokens.rows, tokens.lengths)
    torch.testing.assert_close(ours, expected * mask(tokens.lengths), rtol=1e-5, atol=1e-6)
    metrics = policy_loss(tokens, surrogate=likelihood, aggregation=TokenMean()).metrics | found.metrics
    for name in ("sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean"):
        metric = metrics[name]
        assert float(metric.total) / metric.count == pytest.approx(logged[name], rel=1e-5), name
