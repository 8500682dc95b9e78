"""Log-probs of given continuations: a prompt once, with everything that might follow it as branches behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from whet.data.pack import fill, pack_groups
from whet.data.pictures import PictureReader
from whet.data.rendered import RenderedGroup
from whet.models.backbone import unwrapped
from whet.models.memory import token_budget
from whet.models.mode import evaluating
from whet.models.scoring import TokenScorer
from whet.schema.rollouts import Request


def continuation_logprobs(
    model: torch.nn.Module, requests: Sequence[Request], reader: PictureReader | None = None
) -> Iterator[tuple[float, ...]]:
    """For each request the log-prob of each of its continuations, summed over its tokens: at temperature 1, nothing
    cut. The requests must fit the model; `reader` loads their pictures."""
    whole = unwrapped(model)
    budget = token_budget(whole, whole.device, whole.dtype).packed
    groups = [
        RenderedGroup(prompt_ids=request.prompt_ids, response_ids=request.continuations, pictures=request.pictures)
        for request in requests
    ]
    sums: dict[int, list[float]] = {}
    scorer = TokenScorer(model)
    for batch in fill([group.num_tokens for group in groups], budget):
        packed = pack_groups([groups[number] for number in batch], reader)
        with evaluating(model), torch.inference_mode():
            logprobs = scorer(packed.to(whole.device)).logprobs
            summed = iter(_by_row(logprobs, packed.target_rows.to(logprobs.device), len(packed.ends)).tolist())
        for number in batch:
            sums[number] = [next(summed) for _ in groups[number].response_ids]
    for number in range(len(groups)):
        yield tuple(sums[number])


def _by_row(values: Tensor, rows: Tensor, num: int) -> Tensor:
    """[R] the sums of the values [N] of each row."""
    return torch.zeros(num, dtype=torch.float64, device=values.device).index_add_(0, rows, values.double())
