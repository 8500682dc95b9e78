"""TRL 1.16's GRPO and RLOO losses on plain tensors, with gradients and metrics; skipped where TRL is not.

Where the definitions differ the difference is asserted:

- The mean over tokens of `bnpo` is TRL's own micro-batch's, ours that of the whole step, as TRL's `dapo`.
- TRL's entropy bonus is a mean over tokens whatever the loss, ours is added up like the loss.
- TRL's `kl` has the ratio in it where the loss has, ours never.
- CISPO's bound is TRL's `epsilon_high`, our 1 + `clip_high`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.objectives.tokens import means, random_tokens
from tests.oracles.padded import mask, of, padded
from tests.oracles.policy_trainer import LENGTHS, LONGEST, stub
from tests.oracles.stand_ins import assert_same
from whet.config import policy as plan
from whet.objectives.importance import token_weights
from whet.objectives.policy import PolicyTokens
from whet.train.bind_policy import policy_learning

trl = pytest.importorskip("trl", minversion="1.16.0")


def trl_inputs(tokens: PolicyTokens) -> dict[str, torch.Tensor]:
    ids = mask(tokens.lengths)
    first = torch.cat([torch.zeros(1, dtype=torch.long), tokens.lengths.cumsum(0)[:-1]])
    return {
        "prompt_ids": ids[:, :1], "prompt_mask": torch.ones_like(ids[:, :1]), "completion_ids": ids,
        "completion_mask": ids, "advantages": tokens.advantages[first],
        "old_per_token_logps": of(tokens, "old_logprobs", fill=-1.5),
        "ref_per_token_logps": of(tokens, "reference_logprobs", fill=-0.5),
        "num_items_in_batch": tokens.lengths.sum(),
    }  # fmt: skip


def compare(objective: plan.PolicyObjective, tokens: PolicyTokens, **settings: Any) -> tuple[dict, dict]:
    """Value and gradient; returns our metrics and theirs."""
    args = {"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1, **settings.pop("args", {})}
    theirs = stub(tokens, args=SimpleNamespace(**args), **settings)
    expected = trl.GRPOTrainer._compute_loss(theirs, None, trl_inputs(tokens))
    learning = policy_learning(objective, max_new_tokens=LONGEST)
    found = learning.formula(tokens)
    units = learning.aggregation.units(tokens.num_rows, tokens.num_tokens)
    assert_same(found.total / units, expected, tokens.logprobs)
    return means(found), {name: values[0] for name, values in theirs._metrics["train"].items()}


CASES = {
    "grpo": (plan.Grpo(kl_weight=0.0), {"loss_type": "grpo"}),
    "grpo kl": (plan.Grpo(kl_weight=0.3), {"loss_type": "grpo", "beta": 0.3}),
    "grpo kl by ratio": (
        plan.Grpo(kl_weight=0.3, kl_ratio=True),
        {"loss_type": "grpo", "beta": 0.3, "args": {"use_bias_correction_kl": True}},
    ),
    "bnpo": (plan.Bnpo(), {"loss_type": "bnpo"}),
    "dr_grpo": (plan.DrGrpo(), {"loss_type": "dr_grpo"}),
    "dapo": (plan.Dapo(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "two-sided": (plan.Dapo(clip_delta=1.4), {"loss_type": "dapo", "epsilon_high": 0.28, "args": {"delta": 1.4}}),
    "cispo": (plan.Cispo(clip_high=0.1), {"loss_type": "cispo", "epsilon_high": 1.1}),
    "gspo": (
        plan.Gspo(clip_low=0.05, clip_high=0.06),
        {"importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.06},
    ),
    "gspo kl by ratio": (
        plan.Gspo(kl_weight=0.3, kl_ratio=True),
        {
            "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4, "beta": 0.3,
            "args": {"use_bias_correction_kl": True},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", list(CASES))
def test_losses(name: str, seed: int) -> None:
    objective, settings = CASES[name]
    ours, theirs = compare(objective, random_tokens(LENGTHS, seed), **dict(settings))
    shared = set(ours) & set(theirs) - ({"kl"} if "by ratio" in name else set())
    assert {"entropy"} < shared
    assert "cispo_clip_ratio" in shared or {f"clip_ratio/{side}_mean" for side in ("low", "high", "region")} < shared
    for key in shared - {"policy_loss"}:
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-12), key


def test_kl_metric_has_no_ratio_in_it() -> None:
    tokens, (objective, settings) = random_tokens(LENGTHS, 3), CASES["grpo kl by ratio"]
    ours, theirs = compare(objective, tokens, **dict(settings))
    plain, _ = compare(CASES["grpo kl"][0], tokens, **dict(CASES["grpo kl"][1]))
    assert ours["kl"] == plain["kl"] != pytest.approx(theirs["kl"], rel=1e-3)


def test_gspo_token_is_their_gspo() -> None:
    objective = plan.GspoToken(clip_low=0.05, clip_high=0.06)
    compare(objective, random_tokens(LENGTHS, 3), **dict(CASES["gspo"][1]))


def test_entropy_bonus() -> None:
    """The same for a mean over tokens; a mean of means differs."""
    tokens = random_tokens(LENGTHS, 4)
    compare(plan.Dapo(entropy_weight=0.2), tokens, loss_type="dapo", epsilon_high=0.28, entropy_coef=0.2)
    with pytest.raises(AssertionError):
        compare(plan.Grpo(kl_weight=0.0, entropy_weight=0.2), tokens, entropy_coef=0.2)


def test_rloo() -> None:
    tokens = random_tokens(LENGTHS, 5, spread=0.1)
    theirs = stub(tokens)
    inputs = trl_inputs(tokens)
    inputs["old_logps"] = (inputs["old_per_token_logps"] * inputs["completion_mask"]).sum(1)
    expected = trl.RLOOTrainer._compute_loss(theirs, None, inputs)
    found = policy_learning(plan.Rloo(), max_new_tokens=LONGEST).formula(tokens)
    assert_same(found.total / len(LENGTHS), expected, tokens.logprobs)
    for side in ("low", "high", "region"):
        name = f"clip_ratio/{side}_mean"
        assert means(found)[name] == pytest.approx(theirs._metrics["train"][name][0])


def test_the_corrected_loss() -> None:
    tokens = random_tokens(LENGTHS, 7)
    found = token_weights(tokens, beyond="truncate", cap=1.1).values
    theirs = stub(tokens, loss_type="dapo", beta=0.2, use_vllm=True, vllm_importance_sampling_correction=True)
    given = {**trl_inputs(tokens), "importance_sampling_ratio": padded(found, tokens.rows, tokens.lengths)}
    expected = trl.GRPOTrainer._compute_loss(theirs, None, given)
    objective = plan.Bnpo(kl_weight=0.2, importance_correction="token_truncate", importance_cap=1.1)
    ours = policy_learning(objective, max_new_tokens=LONGEST).formula(tokens)
    assert_same(ours.total / tokens.num_tokens, expected, tokens.logprobs)
