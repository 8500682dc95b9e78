"""verl 0.9.1's `core_algos` on plain tensors: PPO, GAE, values, GSPO, CISPO, KL, advantages, aggregations.

Skipped where verl is not. Where the definitions differ the difference is asserted:

- verl's PPO always bounds a bad token's ratio (`clip_ratio_c`, 3), ours only where `clip_delta` asks for it.
- Its GAE comes back whitened, ours is whitened afterwards by moments that may be those of all ranks.
- A prompt's only reward is its own advantage in verl, and 0 here.
- Its k3 is cut off at 10.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.objectives.tokens import means, random_tokens, tensor
from tests.oracles.padded import mask, of, padded
from tests.oracles.stand_ins import assert_same
from whet.config import policy as plan
from whet.objectives import kl
from whet.objectives.advantages import group_advantages, leave_one_out
from whet.objectives.aggregation import Aggregation, Constant, SequenceMean, SequenceSum, TokenMean
from whet.objectives.credit import Advantages, Rollouts, gae_credit, response_credit, return_credit
from whet.objectives.policy import PolicyTokens
from whet.objectives.value import ValueTokens, value_loss
from whet.train.bind_policy import policy_learning

algos = pytest.importorskip("verl.trainer.ppo.core_algos", exc_type=ImportError)

LENGTHS = (4, 9, 2, 6, 1, 7, 8, 3)
GROUPS = torch.arange(4).repeat_interleave(2)


def settings(**given: Any) -> Any:
    from verl.workers.config import ActorConfig

    return ActorConfig(
        **{"strategy": "fsdp", "ppo_micro_batch_size_per_gpu": 1, "rollout_n": 1, "clip_ratio_c": 1e9, **given}
    )


def verl_loss(name: str, tokens: PolicyTokens, aggregation: str, **given: Any) -> tuple[torch.Tensor, dict[str, float]]:
    loss, metrics = algos.get_policy_loss_fn(name)(
        of(tokens, "old_logprobs", fill=-1.5), of(tokens, "logprobs", fill=-1.0), of(tokens, "advantages"),
        mask(tokens.lengths), aggregation, settings(**given),
    )  # fmt: skip
    return loss, metrics


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("objective", "name", "aggregation", "given"),
    [
        (plan.Ppo(), "vanilla", "token-mean", {}),
        (
            plan.Ppo(clip_low=0.1, clip_high=0.3), "vanilla", "token-mean",
            {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3},
        ),
        (plan.Ppo(clip_delta=1.4), "vanilla", "token-mean", {"clip_ratio_c": 1.4}),
        (plan.Grpo(kl_weight=0.0), "vanilla", "seq-mean-token-mean", {}),
        (
            plan.Gspo(clip_low=0.05, clip_high=0.06), "gspo", "seq-mean-token-mean",
            {"clip_ratio_low": 0.05, "clip_ratio_high": 0.06},
        ),
        (
            plan.GspoToken(clip_low=0.05, clip_high=0.06), "gspo", "seq-mean-token-mean",
            {"clip_ratio_low": 0.05, "clip_ratio_high": 0.06},
        ),
        (
            plan.Cispo(clip_low=0.1, clip_high=0.2), "cispo", "token-mean",
            {"clip_ratio_low": 0.1, "clip_ratio_high": 0.2},
        ),
    ],
    ids=["ppo", "ppo-higher", "ppo-dual", "grpo", "gspo", "gspo_token", "cispo"],
)  # fmt: skip
def test_policy_losses(objective: plan.PolicyObjective, name: str, aggregation: str, given: dict, seed: int) -> None:
    tokens = random_tokens(LENGTHS, seed)
    expected, metrics = verl_loss(name, tokens, aggregation, **given)
    learning = policy_learning(objective, max_new_tokens=max(LENGTHS))
    found = learning.formula(tokens)
    units = learning.aggregation.units(tokens.num_rows, tokens.num_tokens)
    assert_same(found.total / units, expected, tokens.logprobs)
    if name == "vanilla":
        assert means(found)["clip_ratio/region_mean"] == pytest.approx(metrics["actor/pg_clipfrac"])


def test_gspo_token_with_advantages_of_tokens() -> None:
    tokens = random_tokens(LENGTHS, 3)
    drawn = torch.randn(len(tokens.rows), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    tokens = PolicyTokens(
        logprobs=tokens.logprobs, old_logprobs=tokens.old_logprobs, advantages=drawn, rows=tokens.rows,
        lengths=tokens.lengths,
    )  # fmt: skip
    clips = {"clip_ratio_low": 0.05, "clip_ratio_high": 0.06}
    expected, _ = verl_loss("gspo", tokens, "seq-mean-token-mean", **clips)
    found = policy_learning(plan.GspoToken(clip_low=0.05, clip_high=0.06), max_new_tokens=9).formula(tokens)
    assert_same(found.total / len(LENGTHS), expected, tokens.logprobs)


def test_verl_always_has_two_sides() -> None:
    tokens = random_tokens(LENGTHS, 5, spread=1.5)
    theirs, _ = verl_loss("vanilla", tokens, "token-mean", clip_ratio_c=3.0)
    ours = policy_learning(plan.Ppo(), max_new_tokens=9).formula(tokens).total / tokens.num_tokens
    bounded = policy_learning(plan.Ppo(clip_delta=3.0), max_new_tokens=9).formula(tokens).total / tokens.num_tokens
    assert bounded.item() == pytest.approx(theirs.item()) != pytest.approx(ours.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("aggregation", "name"),
    [
        (TokenMean(), "token-mean"), (SequenceMean(), "seq-mean-token-mean"), (SequenceSum(), "seq-mean-token-sum"),
        (Constant(20), "seq-mean-token-sum-norm"),
    ],
)  # fmt: skip
def test_aggregations(aggregation: Aggregation, name: str) -> None:
    tokens = random_tokens(LENGTHS, 6)
    terms = torch.randn(tokens.num_tokens, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = algos.agg_loss(
        padded(terms, tokens.rows, tokens.lengths, fill=9.0), mask(tokens.lengths), name, loss_scale_factor=20
    )
    found = aggregation.total(terms, tokens.rows, tokens.lengths) / aggregation.units(len(LENGTHS), tokens.num_tokens)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def rollouts(seed: int) -> tuple[Rollouts, torch.Tensor]:
    """Eight responses with scores and a penalty at every token; and verl's token rewards [R, T]."""
    tokens, generator = random_tokens(LENGTHS, seed), torch.Generator().manual_seed(seed)
    num = tokens.num_tokens
    found = Rollouts(
        rewards=torch.randn(8, generator=generator, dtype=torch.float64), groups=GROUPS, rows=tokens.rows,
        lengths=tokens.lengths, penalty=0.1 * torch.randn(num, generator=generator, dtype=torch.float64),
        values=torch.randn(num, generator=generator, dtype=torch.float64),
    )  # fmt: skip
    return found, padded(found.token_rewards(), found.rows, found.lengths)


def assert_whitened(found: Advantages, expected: torch.Tensor) -> None:
    white = found.whitened(found.moments())
    ours = padded(white.tokens, white.rows, torch.tensor(LENGTHS))
    torch.testing.assert_close(ours, expected * mask(torch.tensor(LENGTHS)), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae(gamma: float, lam: float) -> None:
    drawn, rewards = rollouts(8)
    assert drawn.values is not None
    responses = mask(drawn.lengths)
    values = padded(drawn.values, drawn.rows, drawn.lengths)
    advantages, returns = algos.compute_gae_advantage_return(rewards, values, responses, gamma, lam)
    found = gae_credit(drawn, gamma=gamma, lam=lam)
    assert found.returns is not None
    ours = padded(found.returns, drawn.rows, drawn.lengths)
    torch.testing.assert_close(ours, returns * responses, rtol=1e-5, atol=1e-9)
    assert_whitened(found, advantages)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_plus_plus(gamma: float) -> None:
    from omegaconf import OmegaConf

    drawn, rewards = rollouts(9)
    advantages, _ = algos.compute_reinforce_plus_plus_outcome_advantage(
        rewards, mask(drawn.lengths), config=OmegaConf.create({"gamma": gamma})
    )
    assert_whitened(return_credit(drawn, gamma=gamma), advantages)


def test_reinforce_plus_plus_baseline() -> None:
    drawn, rewards = rollouts(10)
    expected, _ = algos.compute_reinforce_plus_plus_baseline_outcome_advantage(
        rewards, mask(drawn.lengths), GROUPS.numpy()
    )
    learning = policy_learning(plan.ReinforcePlusPlusBaseline(), max_new_tokens=9)
    assert_whitened(learning.advantages(drawn), expected)


@pytest.mark.parametrize("divide_by_std", [True, False])
def test_group_advantages(divide_by_std: bool) -> None:
    drawn, rewards = rollouts(11)
    expected, _ = algos.compute_grpo_outcome_advantage(
        rewards, mask(drawn.lengths), GROUPS.numpy(), norm_adv_by_std_in_grpo=divide_by_std
    )
    learning = policy_learning(plan.Grpo(divide_by_std=divide_by_std), max_new_tokens=9)
    ours = padded(learning.advantages(drawn).tokens, drawn.rows, drawn.lengths)
    torch.testing.assert_close(ours, expected.to(ours), rtol=1e-5, atol=1e-9)


def test_leave_one_out() -> None:
    drawn, rewards = rollouts(12)
    expected, _ = algos.compute_rloo_outcome_advantage(rewards, mask(drawn.lengths), GROUPS.numpy())
    ours = padded(response_credit(drawn, baseline=leave_one_out).tokens, drawn.rows, drawn.lengths)
    torch.testing.assert_close(ours, expected.to(ours), rtol=1e-5, atol=1e-9)


def test_a_prompts_only_reward() -> None:
    rewards, one = tensor(2.0)[:, None], torch.ones(1, 1, dtype=torch.long)
    for theirs, ours in (
        (algos.compute_grpo_outcome_advantage, partial(group_advantages, divide_by_std=True)),
        (algos.compute_rloo_outcome_advantage, leave_one_out),
    ):
        expected, _ = theirs(rewards.clone(), one, np.zeros(1, dtype=object))
        assert expected.item() == pytest.approx(2.0, rel=1e-5)
        assert ours(tensor(2.0), torch.zeros(1, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize("clip", [0.2, 1e9])
def test_value_loss(clip: float) -> None:
    drawn, _ = rollouts(13)
    generator = torch.Generator().manual_seed(14)
    assert drawn.values is not None
    returns = drawn.values + torch.randn(len(drawn.rows), generator=generator, dtype=torch.float64)
    values = (drawn.values + 0.3 * torch.randn(len(drawn.rows), generator=generator, dtype=torch.float64)).detach()
    values.requires_grad_()
    expected, fraction = algos.compute_value_loss(
        *(padded(x, drawn.rows, drawn.lengths) for x in (values, returns, drawn.values)), mask(drawn.lengths), clip
    )
    found = value_loss(ValueTokens(values=values, old_values=drawn.values, returns=returns), clip=clip)
    assert_same(found.total / len(drawn.rows), expected, values)
    assert means(found)["val/clipfrac_avg"] == pytest.approx(float(fraction))


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimators(name: str) -> None:
    tokens = random_tokens(LENGTHS, 15)
    assert tokens.reference_logprobs is not None
    expected = algos.kl_penalty(tokens.logprobs, tokens.reference_logprobs, name)
    found = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}[name](tokens.logprobs, tokens.reference_logprobs)
    torch.testing.assert_close(found, expected)
    far = kl.k3(tensor(-9.0), tensor(-1.0)).item()
    assert far > 2000 and algos.kl_penalty(tensor(-9.0), tensor(-1.0), "k3").item() == 10.0


def test_kl_controller() -> None:
    theirs = algos.AdaptiveKLController(0.2, 6.0, 1000.0)
    ours = kl.AdaptiveKl(weight=0.2, target=6.0, horizon=1000.0)
    for measured in (3.0, 5.9, 6.1, 30.0, -1.0):
        theirs.update(measured, 64)
        ours = ours.updated(measured, 64)
        assert ours.weight == pytest.approx(theirs.value)
