"""Drawing one token for each row of a batch, each row from its own stream of random numbers.

Order of the transformations, as everywhere in the field: temperature, then top-k, top-p, min-p. A token is found by
inverting the cumulative distribution in vocabulary order, with one uniform number per token, so which token a number
picks does not depend on how a sort broke ties. Top-k and top-p keep every token as likely as the last one they admit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from whet.errors import ModelError
from whet.models.exponential import exp_
from whet.schema.rollouts import Sampling

CACHED = 1 << 20
"""Logits that are looked at together on a CPU: 4 MiB in fp32."""
BLOCK = 512
"""Tokens whose weights are summed together before one of them is looked for."""
SAFE_TOTAL = 1e-18, 1e30
"""Sums of exp(score) between which no score that counts was lost in fp32, and none was infinite."""
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
    size = len(logits) if logits.is_cuda else max(1, CACHED // logits.shape[-1])
    parts = [slice(start, start + size) for start in range(0, len(logits), size)]
    ways = [_Way(sampling, banned, barred[part]) for part in parts]
    look = _largest if sampling.temperature == 0 else _look
    looked = [look(logits[part], way, scratch) for part, way in zip(parts, ways, strict=True)]
    columns = [torch.cat(column) for column in zip(*looked, strict=True)]
    if sampling.temperature == 0:
        return Drawn(*columns)
    return _drawn(logits, _Way(sampling, banned, barred), uniform, *columns)


@dataclass(frozen=True, slots=True)
class _Way:
    """From the logits of some rows to the scores that are drawn from."""

    sampling: Sampling
    banned: tuple[int, ...]
    barred: torch.Tensor
    """[rows]."""

    @property
    def truncates(self) -> bool:
        return self.sampling.top_k > 0 or self.sampling.top_p < 1.0 or self.sampling.min_p > 0.0

    def scores(self, wide: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
        """Of logits in fp32, in their place, before truncation: of all ids, or of `columns` [rows, n]."""
        if self.banned:
            places = torch.tensor(self.banned, device=wide.device)
            if columns is None:
                wide[:, places] = wide[:, places].masked_fill(self.barred[:, None], -torch.inf)
            else:
                wide.masked_fill_(torch.isin(columns, places) & self.barred[:, None], -torch.inf)
        return wide if self.sampling.temperature in (0.0, 1.0) else wide.div_(self.sampling.temperature)

    def held(self, logits: torch.Tensor) -> torch.Tensor:
        """Logarithm of the weight [rows] that the banned ids have and do not get."""
        theirs = logits[:, torch.tensor(self.banned, device=logits.device)].float()
        return torch.logsumexp(theirs, dim=-1).masked_fill(~self.barred, -torch.inf)


def _largest(logits: torch.Tensor, way: _Way, scratch: Scratch) -> tuple[torch.Tensor, ...]:
    """What a greedy draw gives, in the order of `Drawn`."""
    total = _policy_total(logits, scratch)
    ids = way.scores(scratch.take(logits)).argmax(dim=-1)
    own = logits.gather(-1, ids[:, None]).squeeze(-1).float()
    return ids, torch.zeros_like(own), own - total


def _look(logits: torch.Tensor, way: _Way, scratch: Scratch) -> tuple[torch.Tensor, ...]:
    """What a draw needs of whole rows: sums of the blocks' weights [rows, blocks] in float64; what is taken from scores
    before they become weights, and the least score that is left, [rows, 1] each; and the logarithm of the policy's
    total [rows]."""
    scores = way.scores(scratch.take(logits))
    least = truncate_(scores, way.sampling)

    def again() -> torch.Tensor:
        taken = way.scores(scratch.take(logits))
        return taken.masked_fill_(taken < least, -torch.inf)

    sums, offset = _weigh(scores, again)
    if way.truncates or way.sampling.temperature != 1.0:
        return sums, offset, least, _policy_total(logits, scratch)
    total = _log_total(sums, offset)
    return sums, offset, least, torch.logaddexp(total, way.held(logits)) if way.banned else total


def _policy_total(logits: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Logarithm of the total weight [rows] under the softmax of the logits as they came."""
    return _log_total(*_weigh(scratch.take(logits), lambda: scratch.take(logits)))


def _weigh(scores: torch.Tensor, again: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over blocks [rows, blocks] of exp(score - offset), and the offset [rows, 1] of each row.

    Scores in fp32 are overwritten; `again` gives them once more. A pass over them for the largest is saved where it is
    not needed: the offset is 0 unless a row's weights would not fit fp32, and then its largest score. Raises ModelError
    where that is no finite number.
    """
    sums = _block_sums(exp_(scores))
    total = sums.sum(dim=-1, keepdim=True)
    safe = (total > SAFE_TOTAL[0]) & (total < SAFE_TOTAL[1])
    offset = torch.zeros_like(total, dtype=torch.float32)
    if not bool(safe.all()):
        scores = again()
        offset = torch.where(safe, offset, scores.amax(dim=-1, keepdim=True))
        if not bool(offset.isfinite().all()):
            raise ModelError(
                "the model's logits are not finite numbers", found="NaN or infinity",
                fix="its weights may be damaged, or overflow in fp16: compute in bf16 or fp32 (train.precision)",
            )  # fmt: skip
        sums = _block_sums(exp_(scores.sub_(offset)))
    return sums, offset


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """[rows, blocks] in float64 of weights [rows, vocabulary]; the last block may be short."""
    num = weights.shape[-1] // BLOCK * BLOCK
    sums = weights[:, :num].view(len(weights), -1, BLOCK).sum(dim=-1)
    if num < weights.shape[-1]:
        sums = torch.cat([sums, weights[:, num:].sum(dim=-1, keepdim=True)], dim=-1)
    return sums.double()


def _log_total(sums: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """[rows], float32."""
    return offset.squeeze(-1) + sums.sum(dim=-1).log().float()


def _drawn(
    logits: torch.Tensor, way: _Way, uniform: torch.Tensor, sums: torch.Tensor, offset: torch.Tensor,
    least: torch.Tensor, normaliser: torch.Tensor,
) -> Drawn:  # fmt: skip
    """The tokens at which the cumulated weights pass uniform * total.

    In two steps, first over sums of blocks, then inside one block, whose weights are computed once more: cumulating a
    whole vocabulary in float64 costs more than a layer of the model.
    """
    ends = sums.cumsum(dim=-1)
    total = ends[:, -1:]
    target = torch.minimum(uniform[:, None] * total, _below(total))
    block = torch.searchsorted(ends, target, right=True)
    columns = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    scores = logits.gather(-1, columns.clamp_max(logits.shape[-1] - 1)).to(torch.float32)
    scores = way.scores(scores, columns)
    scores.masked_fill_((scores < least) | (columns >= logits.shape[-1]), -torch.inf)
    cumulative = exp_(scores.sub_(offset)).double().cumsum(dim=-1)
    # Sums of blocks and sums inside them round differently: never past the last token of the block that has weight.
    rest = torch.minimum(target - (ends - sums).gather(-1, block), _below(cumulative[:, -1:]))
    place = torch.searchsorted(cumulative, rest.clamp_min(0.0), right=True)
    ids = (block * BLOCK + place).squeeze(-1)
    own = logits.gather(-1, ids[:, None]).squeeze(-1).float()
    return Drawn(ids, own / way.sampling.temperature - _log_total(sums, offset), own - normaliser)


def _below(total: torch.Tensor) -> torch.Tensor:
    """The largest number below: rounding must not carry a draw past the last token that can be drawn."""
    return torch.nextafter(total, torch.zeros_like(total))


def truncate_(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Set the scores of tokens outside top-k, top-p and min-p to minus infinity. Returns the least that each row may
    have, [rows, 1]."""
    least = torch.full_like(scores[:, :1], -torch.inf)
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores.masked_fill_(scores < least, -torch.inf)
    if sampling.top_p < 1.0:
        least = torch.maximum(least, _nucleus_edge(scores, sampling.top_p))
        scores.masked_fill_(scores < least, -torch.inf)
    if sampling.min_p > 0.0:
        least = torch.maximum(least, scores.amax(dim=-1, keepdim=True) + math.log(sampling.min_p))
        scores.masked_fill_(scores < least, -torch.inf)
    return least


def _nucleus_edge(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Score [rows, 1] of the last token in the smallest set of likely tokens whose probability reaches `top_p`."""
    # By sums of blocks: `logsumexp` rounds a long row by itself otherwise than the same row among others.
    largest = scores.amax(dim=-1, keepdim=True)
    normaliser = _log_total(_block_sums(exp_(scores - largest)), largest).unsqueeze(-1)
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
