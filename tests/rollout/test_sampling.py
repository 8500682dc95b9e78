"""The sampler against hand-worked distributions, and against chi-square on 20,000 draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from whet.errors import ModelError
from whet.rollout.sampling import draw, truncate_, uniforms
from whet.schema.rollouts import Sampling

LOGITS = torch.log(torch.tensor([0.4, 0.05, 0.3, 0.05, 0.2]))


def sampling(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Sampling:
    return Sampling(max_new_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k)


def truncated(scores: torch.Tensor, setting: Sampling) -> torch.Tensor:
    """The scores, and what is no longer drawn at minus infinity."""
    scores = scores.clone()
    least = truncate_(scores, setting)
    assert bool((scores[scores.isfinite()] >= least.expand_as(scores)[scores.isfinite()]).all())
    return scores


def test_a_stream_is_a_function_of_seed_and_key() -> None:
    stream = uniforms(1, "a#0", 8)
    assert np.array_equal(uniforms(1, "a#0", 32)[:8], stream), "a longer budget must not change the first numbers"
    assert not np.array_equal(uniforms(2, "a#0", 8), stream)
    assert not np.array_equal(uniforms(1, "a#1", 8), stream)
    assert stream.min() >= 0 and stream.max() < 1


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.39, 0), (0.41, 1), (0.46, 2), (0.76, 3), (0.81, 4), (0.999999, 4)]
)
def test_the_distribution_is_inverted_in_vocabulary_order(uniform: float, token: int) -> None:
    drawn = draw(LOGITS[None], sampling(), torch.tensor([uniform], dtype=torch.float64))
    assert drawn.ids.item() == token
    assert drawn.logprobs.item() == drawn.policy_logprobs.item() == pytest.approx(LOGITS[token].item(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_said_in_one_line(temperature: float, broken: float) -> None:
    logits = LOGITS[None].clone()
    logits[0, 2] = broken
    with pytest.raises(ModelError, match="logits are not finite"):
        draw(logits, sampling(temperature, top_p=0.9), torch.tensor([0.5], dtype=torch.float64))


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    kept = truncated(LOGITS[None], sampling(top_p=0.85)).isfinite()[0].tolist()
    assert kept == [True, False, True, False, True]
    assert truncated(LOGITS[None], sampling(top_p=0.65)).isfinite()[0].tolist() == [True, False, True, False, False]


def test_top_k_keeps_the_likeliest() -> None:
    assert truncated(LOGITS[None], sampling(top_k=2)).isfinite()[0].tolist() == [True, False, True, False, False]


def test_top_p_counts_within_top_k() -> None:
    """After top-k 2 the probabilities are 4/7 and 3/7: 0.5 is reached by the first alone."""
    assert truncated(LOGITS[None], sampling(top_k=2, top_p=0.5)).isfinite()[0].tolist() == [
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_flat_nucleus_wider_than_the_probe_is_sorted_out() -> None:
    scores = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)) * 0.01
    scores[0, 7] = 20.0
    kept = truncated(scores, sampling(top_p=0.9)).isfinite()
    assert kept[0].sum() == 1
    for row in (1, 2, 3):
        probabilities = torch.softmax(scores[row].double(), -1).sort(descending=True).values
        assert kept[row].sum() == int((probabilities.cumsum(0) < 0.9).sum()) + 1


def test_a_token_without_probability_is_never_drawn_at_the_edges() -> None:
    scores = torch.tensor([[-math.inf, 0.0, -math.inf]])
    for uniform in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        assert draw(scores, sampling(), torch.tensor([uniform], dtype=torch.float64)).ids.item() == 1


def test_banned_ids_are_not_drawn() -> None:
    uniform = torch.linspace(0, 0.9999, 50, dtype=torch.float64)
    drawn = draw(LOGITS.expand(50, -1), sampling(), uniform, banned=(0, 4))
    assert set(drawn.ids.tolist()) == {1, 2, 3}
    # Under the model itself nothing was banned: log 0.05 where the draw had log (0.05 / 0.4).
    rare = drawn.ids == 1
    torch.testing.assert_close(drawn.policy_logprobs[rare], torch.full_like(drawn.logprobs[rare], math.log(0.05)))
    torch.testing.assert_close(drawn.logprobs[rare], torch.full_like(drawn.logprobs[rare], math.log(0.125)))
    assert draw(LOGITS[None], sampling(temperature=0), uniform[:1], banned=(0,)).ids.item() == 2


def test_only_barred_rows_are_kept_from_the_banned_ids() -> None:
    barred = torch.arange(50) % 2 == 0
    drawn = draw(LOGITS.expand(50, -1), sampling(), torch.full((50,), 0.1, dtype=torch.float64), (0,), barred)
    assert set(drawn.ids[barred].tolist()) == {2} and set(drawn.ids[~barred].tolist()) == {0}


def test_min_p_keeps_what_is_likely_beside_the_likeliest() -> None:
    kept = truncated(LOGITS[None], Sampling(max_new_tokens=1, min_p=0.45)).isfinite()[0].tolist()
    assert kept == [True, False, True, False, True], "0.2 / 0.4 is kept, 0.05 / 0.4 is not"


def test_a_large_vocabulary_is_inverted_in_its_order() -> None:
    """Blocks of the vocabulary and one that is not whole, against a cumulative sum in float64."""
    logits = 2.0 * torch.randn(64, 5 * 512 + 77, generator=torch.Generator().manual_seed(0))
    logits[:8, 512:1024] = -math.inf
    uniform = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    uniform[8], uniform[9] = 0.0, math.nextafter(1.0, 0.0)
    expected = torch.searchsorted(logits.double().softmax(-1).cumsum(-1), uniform[:, None], right=True)[:, 0]
    drawn = draw(logits, sampling(), uniform)
    assert drawn.ids.tolist() == expected.clamp_max(logits.shape[1] - 1).tolist()
    torch.testing.assert_close(drawn.logprobs, logits.log_softmax(-1).gather(1, drawn.ids[:, None])[:, 0])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shift", [-3000.0, -60.0, 60.0, 3000.0])
def test_logits_far_from_zero_are_drawn_as_others(shift: float, temperature: float) -> None:
    """Where exp(logit) is 0 or infinite in fp32; other rows beside them do not notice."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(16, 1200, generator=generator) * 4).round()  # whole numbers, which a shift does not round
    uniform = torch.rand(16, dtype=torch.float64, generator=generator)
    plain = draw(logits, sampling(temperature), uniform)
    far = torch.arange(16)[:, None] % 2 * shift
    mixed = draw(logits + far, sampling(temperature), uniform)
    assert mixed.ids.tolist() == plain.ids.tolist()
    torch.testing.assert_close(mixed.logprobs, plain.logprobs, rtol=0, atol=2e-3)
    near = torch.arange(16) % 2 == 0
    for told, expected in ((mixed.logprobs, plain.logprobs), (mixed.policy_logprobs, plain.policy_logprobs)):
        assert torch.equal(told[near], expected[near])


@pytest.mark.parametrize("setting", [
    Sampling(max_new_tokens=1), Sampling(max_new_tokens=1, temperature=0.7, top_p=0.9),
    Sampling(max_new_tokens=1, top_k=40), Sampling(max_new_tokens=1, min_p=0.05),
    Sampling(max_new_tokens=1, temperature=0),
])  # fmt: skip
@pytest.mark.parametrize("banned", [(), (3, 700, 2600)])
def test_a_row_does_not_know_its_neighbours(setting: Sampling, banned: tuple[int, ...]) -> None:
    """Rows alone and together, barred and not, blocks whole and short, to the bit."""
    generator = torch.Generator().manual_seed(5)
    logits = (3 * torch.randn(24, 80 * 512 + 77, generator=generator)).bfloat16()
    logits[::5] += 400.0
    uniform, barred = torch.rand(24, dtype=torch.float64, generator=generator), torch.arange(24) % 3 == 0
    together = draw(logits, setting, uniform, banned, barred)
    for row in range(24):
        part = slice(row, row + 1)
        alone = draw(logits[part], setting, uniform[part], banned, barred[part])
        for told, expected in zip(
            (alone.ids, alone.logprobs, alone.policy_logprobs),
            (together.ids, together.logprobs, together.policy_logprobs), strict=True,
        ):  # fmt: skip
            assert torch.equal(told, expected[part])
        assert not (barred[row] and int(alone.ids) in banned)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8), (1.4, 0.9)])
def test_draws_fit_the_distribution(temperature: float, top_p: float) -> None:
    """Pearson's chi-square of 20,000 draws, one from each stream's first number, below the 99.9 % quantile."""
    num = 20_000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    uniform = torch.from_numpy(np.array([uniforms(0, f"p#{index}", 1)[0] for index in range(num)]))
    setting = sampling(temperature=temperature, top_p=top_p)
    drawn = draw(logits.expand(num, -1), setting, uniform)
    ids, logprobs = drawn.ids, drawn.logprobs
    probabilities = _reference(logits.double().numpy(), temperature, top_p)
    counts = np.bincount(ids.numpy(), minlength=12)
    assert counts[probabilities == 0].sum() == 0
    seen = probabilities > 0
    chi_square = float((((counts - num * probabilities) ** 2)[seen] / (num * probabilities[seen])).sum())
    degrees = int(seen.sum()) - 1
    # Wilson-Hilferty: the quantile of chi-square at 0.999 (normal quantile 3.09).
    limit = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi_square < limit
    assert np.allclose(logprobs.numpy(), np.log(probabilities[ids.numpy()]), atol=1e-5)


def _reference(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    probabilities = np.exp(logits / temperature)
    probabilities /= probabilities.sum()
    kept, mass = [], 0.0
    for token in np.argsort(-probabilities):
        kept.append(token)
        mass += probabilities[token]
        if mass >= top_p:
            break
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result
