"""Decoding one batch of a model whose attention cannot take trees, with transformers' own cache.

Prompts are padded on the left, so that all rows write their next token into the same column; positions count from the
first real token. A prompt that several requests share is prefilled once. Rows that have ended are taken out of the
batch whenever a quarter of it has ended: copying the cache at every end would cost more than it saves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from whet.models.backbone import max_positions
from whet.rollout.row import LEAVE_AT, Row, Text, streams, take
from whet.rollout.sampling import draw


class PaddedDecoder:
    """Steps a batch of rows that share their sampling settings. `step` adds one token to every unfinished row."""

    def __init__(
        self, model: torch.nn.Module, rows: Sequence[Row], *, end_ids: tuple[int, ...], pad_id: int, text: Text
    ) -> None:
        self.rows = list(rows)
        self._model, self._end_ids, self._pad_id = model, frozenset(end_ids), pad_id
        self._banned, self._text = end_ids, text
        self._last_position = (max_positions(model) or sys.maxsize) - 1
        self._device = next(model.parameters()).device
        self._sampling = rows[0].request.sampling
        self._active = list(range(len(rows)))
        """Rows of the cache, as indices of `rows`."""
        self._step = 0
        self._cache: Any = None
        self._uniforms = streams(self.rows, self._device)

    @property
    def running(self) -> bool:
        return any(row.finish is None for row in self.rows)

    @torch.inference_mode()
    def step(self) -> None:
        logits = self._prefill() if self._cache is None else self._advance()
        banned = self._banned if self._step < self._sampling.min_new_tokens else ()
        drawn = draw(logits, self._sampling, self._uniforms[:, self._step], banned)
        self._next = drawn.ids
        self._step += 1
        take([self.rows[index] for index in self._active], drawn, self._end_ids, self._text)
        self._leave()

    def _prefill(self) -> torch.Tensor:
        prompts = list(dict.fromkeys(row.request.prompt_ids for row in self.rows))
        place = {prompt: index for index, prompt in enumerate(prompts)}
        longest = max(map(len, prompts))
        ids = torch.tensor([[self._pad_id] * (longest - len(p)) + list(p) for p in prompts], device=self._device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        logits = self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))
        which = torch.tensor([place[row.request.prompt_ids] for row in self.rows], device=self._device)
        if len(prompts) < len(self.rows):
            self._cache.batch_select_indices(which)
        self._mask = mask[which]
        self._positions = self._mask.sum(-1, keepdim=True)
        return logits[which]

    def _advance(self) -> torch.Tensor:
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        logits = self._forward(self._next[:, None], self._mask, self._positions)
        # A row that has ended goes on until it leaves, and a table of positions ends where the model does.
        self._positions = (self._positions + 1).clamp_max(self._last_position)
        return logits

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] after the last position, the only one that goes through the LM head."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _leave(self) -> None:
        stay = [place for place, index in enumerate(self._active) if self.rows[index].finish is None]
        if not stay or len(stay) > LEAVE_AT * len(self._active):
            return
        which = torch.tensor(stay, device=self._device)
        self._cache.batch_select_indices(which)
        self._mask, self._positions = self._mask[which], self._positions[which]
        self._uniforms, self._next = self._uniforms[which], self._next[which]
        self._active = [self._active[place] for place in stay]
