"""What is added to a surrogate of online RL, by hand: KL, entropy, and what makes up for the sampler."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.objectives.tokens import RATIOS, means, random_tokens, tensor, tokens
from whet.objectives import kl
from whet.objectives.aggregation import SequenceMean, TokenMean
from whet.objectives.importance import sequence_weights, token_weights
from whet.objectives.policy import KlTerm, policy_loss
from whet.objectives.ratio import token_ratio
from whet.objectives.surrogate import clipped

CLIP = partial(clipped, ratio=token_ratio, clip_low=0.2, clip_high=0.2)


def test_kl_in_the_loss() -> None:
    # d = log pi_ref - log pi = log 2 everywhere: k1 = -log 2, k2 = log^2(2) / 2, k3 = 1 - log 2
    given = tokens(advantages=tensor(0, 0, 0, 0, 0))
    given = replace(given, reference_logprobs=given.logprobs.detach() + math.log(2))
    ln2 = math.log(2)
    slopes = {kl.k1: 1.0, kl.k2: -ln2, kl.k3: -1.0}  # d/d log pi: 1, log pi - log pi_ref, 1 - e^d
    for estimator, value in ((kl.k1, -ln2), (kl.k2, ln2**2 / 2), (kl.k3, 1 - ln2)):
        term = KlTerm(estimator=estimator, weight=0.5)
        loss = policy_loss(given, surrogate=CLIP, aggregation=SequenceMean(), kl=term)
        assert loss.total.item() == pytest.approx(0.5 * 2 * value)  # two responses, the same at every token
        assert means(loss)["kl"] == pytest.approx(value)
        slope = torch.autograd.grad(loss.total, given.logprobs)[0]
        torch.testing.assert_close(slope, 0.5 * slopes[estimator] / given.row_lengths)


def test_kl_by_the_ratio() -> None:
    # the ratio is a factor with a gradient of its own: d (k rho) = k' rho + k rho
    given = tokens(advantages=tensor(0, 0, 0, 0, 0))
    given = replace(given, reference_logprobs=given.logprobs.detach() + math.log(2))
    term = KlTerm(estimator=kl.k3, weight=1.0, by_ratio=True)
    loss = policy_loss(given, surrogate=CLIP, aggregation=TokenMean(), kl=term)
    k3, rho = 1 - math.log(2), tensor(*RATIOS)
    assert loss.total.item() == pytest.approx(6.0 * k3)
    torch.testing.assert_close(torch.autograd.grad(loss.total, given.logprobs)[0], (k3 - 1.0) * rho)
    assert means(loss)["kl"] == pytest.approx(k3)


def test_k1_by_the_ratio_has_the_gradient_of_the_kl() -> None:
    """Over all tokens of a vocabulary, weighted by the old policy: E_old[rho k1] is the KL itself."""
    logits = tensor(0.3, -1.0, 0.7).requires_grad_()
    reference, old = tensor(0.1, 0.2, -0.5).log_softmax(0), tensor(0.5, -0.5, 0.2).log_softmax(0)
    policy = logits.log_softmax(0)
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    estimate = (old.exp() * (policy - old).exp() * kl.k1(policy, reference)).sum()
    torch.testing.assert_close(torch.autograd.grad(estimate, logits, retain_graph=True)[0], exact)
    # without the ratio, on policy, k1 has none and k2 has the KL's
    still = policy.detach().exp()
    plain = torch.autograd.grad((still * kl.k1(policy, reference)).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(plain, torch.zeros(3, dtype=torch.float64))
    k2 = torch.autograd.grad((still * kl.k2(policy, reference)).sum(), logits)[0]
    torch.testing.assert_close(k2, exact)


def test_entropy_bonus() -> None:
    entropy = tensor(1, 2, 3, 4, 5).requires_grad_()
    given = tokens(advantages=tensor(0, 0, 0, 0, 0), entropy=entropy)
    loss = policy_loss(given, surrogate=CLIP, aggregation=SequenceMean(), entropy_weight=0.1)
    assert loss.total.item() == pytest.approx(-0.1 * (1.5 + 4.0))
    assert means(loss)["entropy"] == pytest.approx(3.0)
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, entropy)[0], -0.1 * tensor(1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3)
    )


@pytest.mark.parametrize(
    ("correction", "weights", "mean", "beyond"),
    [
        (partial(token_weights, beyond="truncate", cap=2.0), (2, 1, 2, 0.25, 1), 6.25 / 5, 1 / 5),
        (partial(token_weights, beyond="mask", cap=5.0, floor=0.5), (2, 1, 4, 0, 1), 8 / 5, 1 / 5),
        (partial(sequence_weights, beyond="truncate", cap=1.5), (1.5, 1.5, 1, 1, 1), 2.5 / 2, 1 / 2),
        (partial(sequence_weights, beyond="mask", cap=1.5), (0, 0, 1, 1, 1), 1 / 2, 1 / 2),
    ],
    ids=["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"],
)
def test_importance_correction(correction, weights: tuple[float, ...], mean: float, beyond: float) -> None:
    # pi_old / pi_sampler = 2, 1 and 4, 1/4, 1: products 2 and 1
    shift = tensor(2, 1, 4, 0.25, 1).log()
    given = tokens()
    given = replace(given, sampler_logprobs=given.old_logprobs - shift)
    torch.testing.assert_close(correction(given).values, tensor(*weights))
    loss = policy_loss(given, surrogate=CLIP, aggregation=TokenMean(), correction=correction)
    assert loss.total.item() == pytest.approx((CLIP(given).losses * tensor(*weights)).sum().item())
    found = means(loss)
    assert found["sampling/importance_sampling_ratio/mean"] == pytest.approx(mean)
    assert found["sampling/importance_sampling_ratio/beyond"] == pytest.approx(beyond)
    assert found["sampling/sampling_logp_difference/mean"] == pytest.approx(math.log(2 * 4 * 4) / 5)


def test_the_correction_leaves_the_kl_alone() -> None:
    given = random_tokens((2, 5), 2)
    term = KlTerm(estimator=kl.k3, weight=0.7)
    without = policy_loss(given, surrogate=CLIP, aggregation=TokenMean(), kl=term).total
    plain = policy_loss(given, surrogate=CLIP, aggregation=TokenMean()).total
    drop_all = partial(sequence_weights, beyond="mask", cap=1e-9)
    found = policy_loss(given, surrogate=CLIP, aggregation=TokenMean(), kl=term, correction=drop_all).total
    torch.testing.assert_close(found, without - plain)


def test_what_is_missing_is_named() -> None:
    for settings, name in (
        ({"kl": KlTerm(estimator=kl.k3, weight=0.1)}, "reference_logprobs"), ({"entropy_weight": 0.1}, "entropy"),
        ({"correction": partial(token_weights, beyond="truncate", cap=2.0)}, "sampler_logprobs"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            policy_loss(tokens(), surrogate=CLIP, aggregation=TokenMean(), **settings)
