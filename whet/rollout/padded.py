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

from whet.data.pictures import PictureReader
from whet.models.backbone import Backbone, max_positions
from whet.models.scoring import next_logits
from whet.ranks.pulse import beat
from whet.rollout.decode import pack_prompts
from whet.rollout.row import LEAVE_AT, Row, Text, streams, take
from whet.rollout.sampling import draw


class PaddedDecoder:
    """Steps a batch of rows that share their sampling settings. `step` adds one token to every unfinished row."""

    def __init__(
        self, model: torch.nn.Module, backbone: Backbone, rows: Sequence[Row], *, end_ids: tuple[int, ...], pad_id: int,
        text: Text, reader: PictureReader | None = None,
    ) -> None:  # fmt: skip
        """`reader` loads the pictures of prompts."""
        self.rows = list(rows)
        self._backbone, self._reader = backbone, reader
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
        beat()
        logits = self._prefill() if self._cache is None else self._advance()
        banned = self._banned if self._step < self._sampling.min_new_tokens else ()
        drawn = draw(logits, self._sampling, self._uniforms[:, self._step], banned)
        self._next = drawn.ids
        self._step += 1
        take([self.rows[index] for index in self._active], drawn, self._end_ids, self._text)
        self._leave()

    def _prefill(self) -> torch.Tensor:
        requests = list({row.prompt: row.request for row in self.rows}.values())
        index = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for row in self.rows))}
        longest = max(len(request.prompt_ids) for request in requests)
        places, start = [], 0
        for request in requests:
            size = len(request.prompt_ids)
            places.append([-1] * (longest - size) + [*range(start, start + size)])
            start += size
        packed = pack_prompts(requests, self._reader).to(self._device)
        place = torch.tensor(places, device=self._device)
        mask = (place >= 0).long()
        if packed.media is None:
            ids = packed.input_ids[place.clamp_min(0)].masked_fill(mask == 0, self._pad_id)
            logits = self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))
            shifts = mask.new_zeros(len(place))
        else:
            hidden, self._cache, shifts = self._backbone.padded_prompts(packed, place)
            logits = next_logits(self._model, hidden)
        which = torch.tensor([index[row.prompt] for row in self.rows], device=self._device)
        if len(requests) < len(self.rows):
            self._cache.batch_select_indices(which)
        self._mask = mask[which]
        self._positions = self._mask.sum(-1, keepdim=True) + shifts[which].unsqueeze(-1)
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
