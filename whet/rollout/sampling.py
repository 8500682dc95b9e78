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
LOG2_E = math.log2(math.e)
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


class Scratch:
    """Memory for the logits that are looked at, kept from step to step: megabytes that are freed and asked for again
    cost a CPU more than the sums over them."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy in fp32, valid until the next call."""
        if self._memory.numel() < logits.numel() or self._memory.device != logits.device:
            self._memory = torch.empty(logits.numel(), dtype=torch.float32, device=logits.device)
        return self._memory[: logits.numel()].view_as(logits).copy_(logits)


def draw(
    logits: torch.Tensor,
    sampling: Sampling,
    uniform: torch.Tensor,
    banned: tuple[int, ...] = (),
    barred: torch.Tensor | None = None,
    scratch: Scratch | None = None,
) -> Drawn:
    """Draw one token a row from logits [rows, vocabulary] with uniform [rows] (float64).

    The `banned` ids cannot be drawn in rows that are `barred` [rows] (bool); None bars all.
    """
    barred = torch.ones(len(logits), dtype=torch.bool, device=logits.device) if barred is None else barred
    scratch = scratch or Scratch()
    # A few rows at a time: what is made of their logits stays in a CPU's caches.
    rows = len(logits) if logits.is_cuda else max(1, CACHED // logits.shape[-1])
    parts = [
        _draw(logits[start : start + rows], sampling, uniform[start : start + rows],
              banned, barred[start : start + rows], scratch)
        for start in range(0, len(logits), rows)
    ]  # fmt: skip
    return Drawn(*(torch.cat(numbers) for numbers in zip(*parts, strict=True)))


def _draw(
    logits: torch.Tensor,
    sampling: Sampling,
    uniform: torch.Tensor,
    banned: tuple[int, ...],
    barred: torch.Tensor,
    scratch: Scratch,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    temperature = sampling.temperature
    truncated = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    shaped = temperature not in (0.0, 1.0) or truncated
    normaliser = _logsumexp(scratch.take(logits)) if shaped or temperature == 0 else None
    scores = scratch.take(logits)
    held = _bar(scores, banned, barred) if banned else None
    if temperature == 0:
        assert normaliser is not None
        ids = scores.argmax(dim=-1)
        own = logits.gather(-1, ids[:, None]).squeeze(-1).float()
        return ids, torch.zeros_like(own), own - normaliser
    if shaped:
        scores = scores.div_(temperature)
        scores = truncate(scores, sampling) if truncated else scores
    largest = scores.amax(dim=-1, keepdim=True)
    ids, total = _invert(_exp(scores, largest), uniform)
    sampled = largest.squeeze(-1) + total.log().float()
    own = logits.gather(-1, ids[:, None]).squeeze(-1).float()
    if normaliser is None:
        normaliser = sampled if held is None else torch.logaddexp(sampled, held)
    return ids, own / temperature - sampled, own - normaliser


def _bar(scores: torch.Tensor, banned: tuple[int, ...], barred: torch.Tensor) -> torch.Tensor:
    """Keep the banned ids from barred rows, in place. Returns the logarithm of the weight [rows] that is taken away."""
    places = torch.tensor(banned, device=scores.device)
    theirs = scores[:, places]
    scores[:, places] = theirs.masked_fill(barred[:, None], -torch.inf)
    return torch.logsumexp(theirs, dim=-1).masked_fill(~barred, -torch.inf)


def _exp(scores: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """exp(scores - largest) in place; by powers of two, of which torch computes three while it computes one of e."""
    return torch.add(largest * -LOG2_E, scores, alpha=LOG2_E, out=scores).exp2_()


def _logsumexp(scores: torch.Tensor) -> torch.Tensor:
    """[rows], of scores that are overwritten."""
    largest = scores.amax(dim=-1, keepdim=True)
    return largest.squeeze(-1) + _exp(scores, largest).sum(dim=-1).log()


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
