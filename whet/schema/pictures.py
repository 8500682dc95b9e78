"""Pictures: how a row of token ids refers to the images that stand in it, and those of a packed row.

    <|vision_start|> <|image_pad|> x 6 <|vision_end|> What is this?
    Picture(source="cat.png", digest="9f2c...", num_tokens=6, grid=(2, 3))

Token ids hold a placeholder for every token of a picture; what stands there for the model is made when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture of a row."""

    source: str
    """Its file, or a `data:` URL that holds its bytes."""
    digest: str
    """Hash of its bytes and of how the checkpoint's processor prepares them: the same digest, the same features."""
    num_tokens: int
    """Placeholders that stand for it."""
    grid: tuple[int, int] | None = None
    """Rows and columns of its tokens, where the processor lays them out in a grid."""


LoadPictures = Callable[[Sequence[Picture]], Mapping[str, "Tensor"]]
"""Reads pictures into what the vision tower takes, by the names it takes them (`pixel_values`, `image_grid_thw`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """The pictures of a packed row, in the order of their placeholders. One that stands in it twice is here twice."""

    pictures: tuple[Picture, ...]
    places: Tensor
    """[M] int64, ascending: positions of all placeholders in the row."""
    load: LoadPictures
    """Called for those pictures only whose features are not known."""

    def to(self, device: torch.device) -> Media:
        return Media(pictures=self.pictures, places=self.places.to(device), load=self.load)
