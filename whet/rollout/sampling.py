"""Drawing one token for each row of a batch, each row from its own stream of random numbers.

Order of the transformations, as everywhere in the field: temperature, then top-k, top-p, min-p. A token is found by
inverting the cumulative distribution in vocabulary order, with one uniform number per token, so which token a number
picks does not depend on how a sort broke ties. Top-k and top-p keep every token as likely as the last one they admit.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch

from whet.schema.rollouts import Sampling

CACHED = 1 << 20
"""Logits that are looked at together on a CPU: 4 MiB in fp32."""
BLOCK = 512
"""Tokens whose weights are summed together before one of them is looked for."""
NUCLEUS_PROBE = 64
"""Tokens looked at first for the nucleus: a full sort of the vocabulary is rarely needed."""


def uniforms(seed: int, key: str, num: int) -> np.ndarray:
    """The first `num` uniform numbers in [0, 1) of a sample: a function of (seed, key) alone, one number a token."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(num)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token a row, each [rows]."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    """Under the distribution they were drawn from (fp32); 0 for a greedy draw."""
    policy_logprobs: torch.Tensor
    """Under the softmax of the logits as they came."""


def draw(
    logits: torch.Tensor,
    sampling: Sampling,
    uniform: torch.Tensor,
    banned: tuple[int, ...] = (),
    barred: torch.Tensor | None = None,
) -> Drawn:
    """Draw one token a row from logits [rows, vocabulary] with uniform [rows] (float64).

    The `banned` ids cannot be drawn in rows that are `barred` [rows] (bool); None bars all.
    """
    barred = torch.ones(len(logits), dtype=torch.bool, device=logits.device) if barred is None else barred
    # A few rows at a time: what is made of their logits stays in a CPU's caches.
    rows = len(logits) if logits.is_cuda else max(1, CACHED // logits.shape[-1])
    parts = [
        _draw(logits[start : start + rows].float(), sampling, uniform[start : start + rows],
              banned, barred[start : start + rows])
        for start in range(0, len(logits), rows)
    ]  # fmt: skip
    return Drawn(*(torch.cat(numbers) for numbers in zip(*parts, strict=True)))


def _draw(
    logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor, banned: tuple[int, ...], barred: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    changed = sampling.temperature != 1.0 or sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    scores = logits
    if banned and bool(barred.any()):
        changed = True
        scores = logits.clone()
        scores[barred.nonzero(), torch.tensor(banned, device=logits.device)] = -torch.inf
    if sampling.temperature == 0:
        ids = scores.argmax(dim=-1)
        return ids, scores.new_zeros(len(scores)), _logprobs(logits, ids)
    if changed:
        scores = truncate(scores / sampling.temperature, sampling)
    largest = scores.amax(dim=-1, keepdim=True)
    ids, total = _invert((scores - largest).exp_(), uniform)
    logprobs = (scores.gather(-1, ids[:, None]) - largest).squeeze(-1) - total.log().float()
    return ids, logprobs, _logprobs(logits, ids) if changed else logprobs


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The token at which the cumulated weights [rows, vocabulary] pass uniform * total, and the total, both [rows].

    In two steps, first over sums of blocks, then inside one block: cumulating a whole vocabulary in float64 costs more
    than a layer of the model.
    """
    num = weights.shape[-1] // BLOCK * BLOCK
    sums = weights[:, :num].view(len(weights), -1, BLOCK).sum(dim=-1)
    if num < weights.shape[-1]:
        sums = torch.cat([sums, weights[:, num:].sum(dim=-1, keepdim=True)], dim=-1)
    sums = sums.double()
    ends = sums.cumsum(dim=-1)
    total = ends[:, -1:]
    # The largest value below the total: rounding must not carry a draw past the last token that can be drawn.
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    block = torch.searchsorted(ends, target, right=True)
    before = (ends - sums).gather(-1, block)
    places = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(-1, places.clamp_max(weights.shape[-1] - 1)).double()
    inside[places >= weights.shape[-1]] = 0.0
    cumulative = inside.cumsum(dim=-1)
    # Sums of blocks and sums inside them round differently: never past the last token of the block that has weight.
    last = cumulative[:, -1:]
    rest = torch.minimum(target - before, torch.nextafter(last, torch.zeros_like(last)))
    place = torch.searchsorted(cumulative, rest.clamp_min(0.0), right=True)
    return (block * BLOCK + place).squeeze(-1), total.squeeze(-1)


def _logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return logits.gather(-1, ids[:, None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)


def truncate(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Set the scores of tokens outside top-k, top-p and min-p to minus infinity."""
    size = scores.shape[-1]
    if 0 < sampling.top_k < size:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if sampling.top_p < 1.0:
        scores = scores.masked_fill(scores < _nucleus_edge(scores, sampling.top_p), float("-inf"))
    if sampling.min_p > 0.0:
        least = scores.amax(dim=-1, keepdim=True) + math.log(sampling.min_p)
        scores = scores.masked_fill(scores < least, float("-inf"))
    return scores


def _nucleus_edge(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Score [rows, 1] of the last token in the smallest set of likely tokens whose probability reaches `top_p`."""
    normaliser = torch.logsumexp(scores, dim=-1, keepdim=True)
    probe = min(NUCLEUS_PROBE, scores.shape[-1])
    edge, reached = _edge(scores.topk(probe, dim=-1).values, normaliser, top_p)
    if not bool(reached.all()):
        rest = ~reached
        ranked = scores[rest].sort(dim=-1, descending=True).values
        edge[rest] = _edge(ranked, normaliser[rest], top_p)[0]
    return edge


def _edge(ranked: torch.Tensor, normaliser: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The edge among scores in falling order, and which rows reach `top_p` within them; the others keep all of them."""
    enough = (ranked - normaliser).double().exp().cumsum(dim=-1) >= top_p
    reached = enough[:, -1]
    first = torch.where(reached, enough.int().argmax(dim=-1), ranked.shape[-1] - 1)
    return ranked.gather(-1, first[:, None]), reached
