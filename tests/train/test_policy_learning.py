"""Every algorithm of online RL learns: a policy of four tokens, no prompt, one of the tokens is worth something.

The whole chain as a stage will run it: rewards to advantages, whitened where the algorithm wants it, minibatches,
formula over its unit, values beside it, KL in loss or reward with its controller.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tests.objectives.tokens import part
from whet.config import policy as plan
from whet.objectives.credit import Rollouts
from whet.objectives.policy import PolicyTokens
from whet.objectives.sums import row_sums
from whet.objectives.value import ValueTokens
from whet.train.bind_policy import PolicyLearning, policy_learning

MEMBERS = get_args(get_args(plan.PolicyObjective)[0])
PROMPTS, GROUP, LONGEST, STEPS = 8, 4, 3, 40
REFERENCE = torch.zeros(4).log_softmax(0)


class Bandit:
    """Logits of four tokens and the value of every state, both trained; responses of one to three tokens."""

    def __init__(self, objective: plan.PolicyObjective) -> None:
        self.objective = objective
        self.learning: PolicyLearning = policy_learning(objective, max_new_tokens=LONGEST)
        self.controller = self.learning.controller
        self.logits, self.value = torch.zeros(4, requires_grad=True), torch.zeros(1, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.logits, self.value], lr=0.05)
        self.generator = torch.Generator().manual_seed(0)
        self.kl = 0.0

    def step(self) -> None:
        lengths = torch.randint(1, LONGEST + 1, (PROMPTS * GROUP,), generator=self.generator)
        rows = torch.repeat_interleave(torch.arange(PROMPTS * GROUP), lengths)
        policy = self.logits.detach().log_softmax(0)
        ids = torch.multinomial(policy.exp(), len(rows), replacement=True, generator=self.generator)
        old, old_values = policy[ids], self.value.detach().expand(len(rows))
        self.kl = float(row_sums(old - REFERENCE[ids], rows, len(lengths)).mean())
        estimator = self.learning.reward_penalty
        rollouts = Rollouts(
            rewards=row_sums((ids == 0).float(), rows, len(lengths)) / lengths,
            groups=torch.arange(PROMPTS).repeat_interleave(GROUP), rows=rows, lengths=lengths, values=old_values,
            penalty=None if estimator is None else self.controller.weight * estimator(old, REFERENCE[ids]),
        )  # fmt: skip
        self.controller = self.controller.updated(self.kl, len(lengths))
        advantages = self.learning.advantages(rollouts)
        if self.learning.whiten:
            advantages = advantages.whitened(advantages.moments())
        tokens = PolicyTokens(
            logprobs=torch.arange(len(rows)).double(), old_logprobs=old, advantages=advantages.tokens, rows=rows,
            lengths=lengths, reference_logprobs=REFERENCE[ids],
        )  # fmt: skip
        kept = advantages.kept.nonzero()[:, 0].tolist()
        size = -(-len(kept) // self.objective.minibatches)
        for _ in range(self.objective.passes):
            for start in range(0, len(kept), size):
                self._update(part(tokens, kept[start : start + size]), ids, advantages.returns, old_values)

    def _update(
        self, chosen: PolicyTokens, ids: torch.Tensor, returns: torch.Tensor | None, old_values: torch.Tensor
    ) -> None:
        """`chosen.logprobs` holds the places of the tokens; the policy's own take their stead."""
        places = chosen.logprobs.long()
        tokens = PolicyTokens(
            logprobs=self.logits.log_softmax(0)[ids[places]], old_logprobs=chosen.old_logprobs,
            advantages=chosen.advantages, rows=chosen.rows, lengths=chosen.lengths,
            reference_logprobs=chosen.reference_logprobs,
        )  # fmt: skip
        units = self.learning.aggregation.units(tokens.num_rows, tokens.num_tokens)
        loss = self.learning.formula(tokens).total / units
        if self.learning.value is not None:
            assert returns is not None
            values = ValueTokens(
                values=self.value.expand(len(places)), old_values=old_values[places], returns=returns[places]
            )
            loss = loss + self.learning.value_weight * self.learning.value(values).total / len(places)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@pytest.mark.parametrize("member", MEMBERS)
def test_the_good_token_wins(member) -> None:
    bandit = Bandit(member())
    for _ in range(STEPS):
        bandit.step()
    chances = bandit.logits.detach().softmax(0)
    assert float(chances[0]) > 0.55, chances  # 0.25 before
    if bandit.learning.value is not None:
        assert float(bandit.value.detach()) > 0.1


@pytest.mark.parametrize("first", [0.02, 5.0], ids=["from above", "from below"])
def test_adaptive_kl_holds_the_policy_at_its_target(first: float) -> None:
    """Too small a weight lets the KL rise to 1.5 nats a response before it comes back; too large a one keeps it low."""
    adaptive = plan.AdaptiveKlWeight(target=0.3, horizon=300.0)
    bandit, measured = Bandit(plan.Ppo(kl_weight=first, adaptive_kl=adaptive, epochs=1)), []
    for _ in range(800):
        bandit.step()
        measured.append(bandit.kl)
    assert (max(measured) > 0.9) == (first == 0.02)
    assert sum(measured[-300:]) / 300 == pytest.approx(0.3, rel=0.15)
