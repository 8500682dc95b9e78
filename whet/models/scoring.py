"""Log-probabilities of target tokens: what every objective stands on."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, target_mask: Tensor) -> Tensor:
    """Log-probability of every target token given all tokens before it.

    `input_ids`, `attention_mask`, `target_mask` are [B, L], right-padded; `target_mask[b, t]` asks for token t of
    row b (t > 0). Returns float32 [N], N = target_mask.sum(), in row-major order. Only the positions before a target
    go through the LM head, so a long prompt costs its backbone pass and nothing more. Where there is no target the
    empty result still hangs on the model, so that a backward pass gives zeros instead of an error.
    """
    before = target_mask[:, 1:]
    columns = before.any(dim=0).nonzero(as_tuple=True)[0]
    logits: Tensor = model(
        input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=columns, use_cache=False
    ).logits  # [B, len(columns), V]
    wanted = before[:, columns]
    targets = input_ids[:, 1:][:, columns][wanted]
    chosen = logits[wanted].float()  # [N, V]
    return chosen.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - chosen.logsumexp(dim=-1)
