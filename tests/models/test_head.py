"""The head's log-probs, entropies and gradients against plain logits in float64: temperatures, caps, scales, biases."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.models.packed import build, pack, with_adapter
from whet.models import head_sums
from whet.models.head import Head, TokenScores, head_scores
from whet.models.scoring import TokenScorer

TOKENS, WIDTH, VOCABULARY = 7, 6, 23
HEADS = {
    "plain": {}, "scaled": {"scale": 0.25}, "capped": {"cap": 1.5}, "both": {"scale": 2.0, "cap": 4.0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions, the last ones not full."""
    for name, size in {"TILE_TOKENS": 3, "TARGETS": 1, "TILE_VOCABULARY": 5, "GRAIN_VOCABULARY": 1}.items():
        monkeypatch.setattr(head_sums, name, size)


def problem(*, bias: bool = True) -> tuple[Tensor, Head, Tensor]:
    """Hidden states, a head and targets. Its later rows are larger, so that the largest logit keeps moving."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
    size = torch.linspace(0.2, 1.5, VOCABULARY, dtype=torch.float64).unsqueeze(-1)
    weight = (size * torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=generator)).requires_grad_()
    shift = torch.randn(VOCABULARY, dtype=torch.float64, generator=generator).requires_grad_() if bias else None
    return hidden, Head(weight=weight, bias=shift), torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)


def plain(hidden: Tensor, head: Head, targets: Tensor, temperature: float) -> TokenScores:
    """Through whole logits."""
    logits = head.scale * (hidden @ head.weight.t() + (0.0 if head.bias is None else head.bias))
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    logprobs = (logits / temperature).log_softmax(dim=-1)
    return TokenScores(
        logprobs=logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        entropy=-(logprobs.exp() * logprobs).sum(dim=-1), top1=logits.argmax(dim=-1) == targets,
    )  # fmt: skip


def objective(scores: TokenScores) -> Tensor:
    """A different weight on each log-prob and each entropy."""
    assert scores.entropy is not None
    weights = torch.linspace(-1.0, 2.0, len(scores.logprobs), dtype=torch.float64)
    return (weights * scores.logprobs).sum() + (weights.flip(0).square() * scores.entropy).sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("kind", HEADS)
def test_every_number_and_gradient_is_that_of_plain_logits(kind: str, temperature: float) -> None:
    hidden, head, targets = problem()
    head = replace(head, **HEADS[kind])
    found = head_scores(hidden, head.at(temperature), targets, entropy_gradient=True)
    expected = plain(hidden, head, targets, temperature)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=0, atol=1e-12)
    assert torch.equal(found.top1, expected.top1)
    inputs = [hidden, head.weight, head.bias]
    for ours, theirs in zip(
        torch.autograd.grad(objective(found), inputs), torch.autograd.grad(objective(expected), inputs), strict=True
    ):
        assert theirs.abs().max() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "both"])
def test_gradients_by_finite_differences(kind: str) -> None:
    hidden, head, targets = problem()

    def total(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        moved = replace(head, weight=weight, bias=bias, **HEADS[kind]).at(0.7)
        return objective(head_scores(hidden, moved, targets, entropy_gradient=True))

    assert torch.autograd.gradcheck(total, (hidden, head.weight, head.bias), atol=1e-7)


def test_two_tokens_by_hand() -> None:
    """Logits (ln 9, 0) at temperature 2 are (ln 3, 0): p = 3/4, H = ln 4 - 3/4 ln 3, dH/dz = -p (log p + H)."""
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    head = Head(weight=torch.tensor([[math.log(9.0)], [0.0]], dtype=torch.float64))
    scores = head_scores(hidden, head.at(2.0), torch.tensor([1]), entropy_gradient=True)
    assert scores.logprobs.item() == pytest.approx(math.log(0.25))
    entropy = math.log(4.0) - 0.75 * math.log(3.0)
    assert scores.entropy is not None and scores.entropy.item() == pytest.approx(entropy)
    (slope,) = torch.autograd.grad(scores.entropy.sum(), hidden)
    assert slope.item() == pytest.approx(-0.75 * (math.log(0.75) + entropy) * math.log(9.0) / 2.0)


def test_a_frozen_head_passes_the_gradient_on_to_the_hidden_states() -> None:
    hidden, head, targets = problem(bias=False)
    frozen = replace(head, weight=head.weight.detach(), cap=2.0)
    found = head_scores(hidden, frozen.at(0.5), targets, entropy_gradient=True)
    (ours,) = torch.autograd.grad(objective(found), hidden)
    (theirs,) = torch.autograd.grad(objective(plain(hidden, frozen, targets, 0.5)), hidden)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets = problem()
    products: list[int] = []
    count = head_sums._rows_of
    monkeypatch.setattr(head_sums, "_rows_of", lambda *given: products.append(1) or count(*given))
    tiles = 3 * 5
    bare = head_scores(hidden, head, targets)
    assert bare.entropy is None and len(products) == tiles
    stated = head_scores(hidden, head, targets, statistics=True)
    assert stated.entropy is not None and not stated.entropy.requires_grad and len(products) == 2 * tiles
    carried = head_scores(hidden, head, targets, entropy_gradient=True)
    assert carried.entropy is not None and carried.entropy.requires_grad and len(products) == 4 * tiles
    with torch.no_grad():
        none = head_scores(hidden, head, targets, entropy_gradient=True)
    assert none.entropy is not None and not none.entropy.requires_grad and len(products) == 4 * tiles
    torch.testing.assert_close(none.entropy, carried.entropy.detach())
    assert head.at(1.0) is head, "temperature 1 costs nothing"


def test_an_entropy_nobody_trains_changes_no_gradient() -> None:
    hidden, head, targets = problem()
    inputs = [hidden, head.weight, head.bias]
    one = torch.autograd.grad(head_scores(hidden, head, targets).logprobs.sum(), inputs)
    other = torch.autograd.grad(head_scores(hidden, head, targets, entropy_gradient=True).logprobs.sum(), inputs)
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_there_is_no_policy_at_temperature_0(temperature: float) -> None:
    with pytest.raises(ValueError, match="no log-probs at temperature"):
        problem()[1].at(temperature)


def test_entropy_gradient_in_bf16() -> None:
    hidden, head, targets = problem()
    narrow = replace(head, weight=head.weight.detach().bfloat16().requires_grad_(), bias=None)
    exact = torch.autograd.grad(
        plain(hidden, replace(head, bias=None), targets, 0.8).entropy.sum(), [hidden, head.weight]
    )
    wide = hidden.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_scores(wide, narrow.at(0.8), targets, entropy_gradient=True)
    assert found.entropy is not None and found.entropy.dtype == torch.float32
    for ours, theirs in zip(torch.autograd.grad(found.entropy.sum(), [wide, narrow.weight]), exact, strict=True):
        assert (ours.double() - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "granite"])
def test_whole_models_with_one_matrix_and_with_an_adapter_on_it_agree(name: str) -> None:
    """The tiles, and the dense path that an adapter which does nothing takes, at a temperature of 0.6."""
    model, packed = build(name).double(), pack([(4, (3, 5)), (6, ())])
    twin = with_adapter(copy.deepcopy(model), targets=["lm_head"]).double()
    with torch.no_grad():
        for parameter_name, parameter in twin.named_parameters():
            if "lora_B" in parameter_name:
                parameter.zero_()
    twin.requires_grad_(False)
    tiled = TokenScorer(model)(packed, temperature=0.6, entropy_gradient=True)
    scorer = TokenScorer(twin)
    inner = inner_weight(twin)
    dense = scorer(packed, temperature=0.6, entropy_gradient=True)
    torch.testing.assert_close(dense.logprobs, tiled.logprobs, rtol=0, atol=1e-10)
    torch.testing.assert_close(dense.entropy, tiled.entropy, rtol=0, atol=1e-10)
    (ours,) = torch.autograd.grad(objective(tiled), inner_weight(model))
    (theirs,) = torch.autograd.grad(objective(dense), inner)
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()
    with torch.no_grad():
        assert scorer(packed).entropy is None, "not asked for"
        other = scorer(packed, statistics=True).logprobs
    assert (other - dense.logprobs).abs().max() > 1e-3, "the temperature does something"


def inner_weight(model: torch.nn.Module) -> Tensor:
    """A weight in the middle of the model, trained."""
    weight: Tensor = next(p for n, p in model.named_parameters() if "layers.0" in n and "up_proj" in n)
    return weight.requires_grad_()
