"""A row of a batch: what has been generated for one request so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from whet.rollout.sampling import Drawn, uniforms
from whet.schema.rollouts import FinishReason, Request

LEAVE_AT = 0.75
"""Ended rows leave when no more than this share still runs: moving the memory at every end would cost more."""
Text = Callable[[Sequence[int]], str]
"""Ids to text, without special tokens."""
Prompt = tuple[tuple[int, ...], tuple[str, ...]]
"""Ids, and the digests of the pictures among them."""


@dataclass(slots=True, eq=False)
class Row:
    """One sample on its way."""

    request: Request
    limit: int
    """Most tokens this row may get: its budget, or what the model's positions leave."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    policy_logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None

    @property
    def prompt(self) -> Prompt:
        """Rows with the same one can share its computation."""
        return self.request.prompt_ids, tuple(picture.digest for picture in self.request.pictures)


def take(rows: Sequence[Row], drawn: Drawn, end_ids: Collection[int], text: Text) -> None:
    """Give every row that still runs its next token, and end those whose token, text or budget says so."""
    drawn_rows = zip(rows, drawn.ids.tolist(), drawn.logprobs.tolist(), drawn.policy_logprobs.tolist(), strict=True)
    for row, token, logprob, policy_logprob in drawn_rows:
        if row.finish is not None:
            continue
        row.ids.append(token)
        row.logprobs.append(logprob)
        row.policy_logprobs.append(policy_logprob)
        if token in end_ids or _stopped(row, text):
            row.finish = "stop"
        elif len(row.ids) >= row.limit:
            row.finish = "length"


def before_stop(row: Row, text: Text) -> str:
    """What a row says, up to the first stop text behind the least number of tokens."""
    words, sampling = text(row.ids), row.request.sampling
    if not sampling.stop:
        return words
    # The bytes of a character that is not whole yet belong to what comes with the next token.
    least = len(text(row.ids[: sampling.min_new_tokens]).rstrip("\N{REPLACEMENT CHARACTER}"))
    places = [place for end in sampling.stop if (place := words.find(end, least)) >= 0]
    return words[: min(places)] if places else words


def _stopped(row: Row, text: Text) -> bool:
    stop, least = row.request.sampling.stop, row.request.sampling.min_new_tokens
    if not stop or len(row.ids) <= least:
        return False
    # A token is a byte at least, and a character four at most: no stop text can begin further back.
    newest = text(row.ids[max(least, len(row.ids) - 4 * max(map(len, stop)) - 4) :])
    return any(end in newest for end in stop)


def streams(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """Uniform numbers [rows, most tokens], each row from its own stream; a greedy row needs none."""
    most = max(row.limit for row in rows)
    if rows[0].request.sampling.temperature == 0:
        return torch.zeros(len(rows), 1, dtype=torch.float64, device=device).expand(-1, most)
    numbers = np.zeros((len(rows), most))
    for into, row in zip(numbers, rows, strict=True):
        into[: row.limit] = uniforms(row.request.seed, row.request.key, row.limit)
    return torch.from_numpy(numbers).to(device)
