"""Drawing one token for each row of a batch, each row from its own stream of random numbers.

Order of the transformations, as everywhere in the field: temperature, then top-k, then top-p. A token is found by
inverting the cumulative distribution in vocabulary order, with one uniform number per token, so which token a number
picks does not depend on how a sort broke ties. Top-k and top-p keep every token as likely as the last one they admit.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from whet.schema.rollouts import Sampling

NUCLEUS_PROBE = 64
"""Tokens looked at first for the nucleus: a full sort of the vocabulary is rarely needed."""


def uniforms(seed: int, key: str, num: int) -> np.ndarray:
    """The first `num` uniform numbers in [0, 1) of a sample: a function of (seed, key) alone, one number a token."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(num)


def draw(
    logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor, banned: tuple[int, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a row from logits [rows, vocabulary] with uniform [rows] (float64).

    Returns ids [rows] and their log-probs [rows] (fp32) under the distribution they were drawn from; a greedy draw has
    log-prob 0. `banned` ids cannot be drawn.
    """
    scores = logits.float()
    if banned:
        scores = scores.index_fill(-1, torch.tensor(banned, device=scores.device), float("-inf"))
    if sampling.temperature == 0:
        return scores.argmax(dim=-1), scores.new_zeros(scores.shape[0])
    scores = truncate(scores / sampling.temperature, sampling)
    cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    # The largest value below the total: rounding must not carry a draw past the last token that can be drawn.
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, target, right=True)
    logprobs = scores.gather(-1, ids).squeeze(-1) - torch.logsumexp(scores, dim=-1)
    return ids.squeeze(-1), logprobs


def truncate(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Set the scores of tokens outside top-k and top-p to minus infinity."""
    size = scores.shape[-1]
    if 0 < sampling.top_k < size:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if sampling.top_p < 1.0:
        scores = scores.masked_fill(scores < _nucleus_edge(scores, sampling.top_p), float("-inf"))
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
