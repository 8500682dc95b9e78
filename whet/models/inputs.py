"""What the layers of a language model take: tokens, their positions, and the pictures among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from whet.errors import ModelError
from whet.models.positions import grid_positions
from whet.models.vision import Vision
from whet.schema.packed import Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """T tokens in one row, of which only the attention knows how they belong together."""

    ids: Tensor
    """[T]."""
    positions: Tensor
    """[T], each token's place in its own row; or [3, T] where pictures are placed in a grid."""
    embedded: Tensor | None = None
    """[T, H], in place of the ids' embeddings."""
    places: Tensor | None = None
    """[M], of the pictures' tokens."""
    deep: tuple[Tensor, ...] = ()
    """[M, H] each: what the pictures add to the output of the first layers, one by one."""

    def one_row(self) -> dict[str, Any]:
        """As the model's forward pass takes it."""
        return {
            "input_ids": self.ids.unsqueeze(0) if self.embedded is None else None,
            "inputs_embeds": None if self.embedded is None else self.embedded.unsqueeze(0),
            "position_ids": self.positions.unsqueeze(-2),
            **self._deep(),
        }

    def filled(self, num: int) -> Inputs:
        """With so many tokens behind them, which stand nowhere and say nothing."""
        return replace(
            self, ids=pad(self.ids, (0, num)), positions=pad(self.positions, (0, num)),
            embedded=None if self.embedded is None else pad(self.embedded, (0, 0, 0, num)),
        )  # fmt: skip

    def rows(self, place: Tensor) -> dict[str, Any]:
        """The same for the tokens at place [R, L], -1 where a row is padded on the right."""
        known = place.clamp_min(0)
        taken: dict[str, Any] = {
            "input_ids": self.ids[known] if self.embedded is None else None,
            "inputs_embeds": None if self.embedded is None else self.embedded[known],
            "attention_mask": (place >= 0).long(),
            **self._deep(place),
        }
        # Not every model takes positions, and each counts the tokens of a row for itself.
        return taken if self.positions.dim() == 1 else {**taken, "position_ids": self.positions[:, known]}

    def _deep(self, place: Tensor | None = None) -> dict[str, Any]:
        """For the tokens at place [R, L]; None for all in one row."""
        if not self.deep or self.places is None:
            return {}
        device = self.places.device
        number = torch.full((len(self.ids) + 1,), -1, dtype=torch.int64, device=device)
        number[self.places] = torch.arange(len(self.places), device=device)
        # The last belongs to padding, at place -1, and is no picture's.
        number = number[:-1].unsqueeze(0) if place is None else number[place]
        seen = number >= 0
        return {"visual_pos_masks": seen, "deepstack_visual_embeds": [layer[number[seen]] for layer in self.deep]}


def inputs_of(
    packed: Packed, embedded: Tensor | None, embed: Callable[[Tensor], Tensor], vision: Vision | None
) -> Inputs:
    """A packed row's inputs; the features of its pictures stand in place of the placeholders' embeddings.

    Raises ModelError where there are pictures and the model takes none.
    """
    ids, positions, media = packed.input_ids, packed.position_ids, packed.media
    if media is None:
        return Inputs(ids=ids, positions=positions, embedded=embedded)
    if vision is None:
        raise ModelError("the model takes no pictures", field="model.path", found=f"{len(media.pictures)} in a row")
    features = vision.features(media)
    embedded = embed(ids) if embedded is None else embedded
    return Inputs(
        ids=ids,
        positions=grid_positions(positions, packed.trees, media) if vision.in_grid else positions,
        embedded=embedded.index_copy(0, media.places, features.tokens.to(embedded.dtype)),
        places=media.places,
        deep=features.deep,
    )
