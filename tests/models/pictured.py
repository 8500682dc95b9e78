"""Small vision-language models, packed rows with pictures of noise, and the plain forward pass over them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from whet.models.attention import NAME
from whet.models.rows import from_trees, row_places
from whet.models.tiny_vlm import Family, Tower, build_tiny_vlm
from whet.schema.packed import Packed, Tree
from whet.schema.pictures import Media, Picture

FAMILIES: tuple[Family, ...] = ("qwen2_5_vl", "qwen3_vl", "llava")
PATCH, MERGE, SIDE = 4, 2, 16
TOWER = Tower(depth=2, hidden_size=16, num_heads=2, patch_size=PATCH, picture_size=SIDE, num_positions=16)
Shape = tuple[Sequence[int | Picture], tuple[int, ...]]
"""A prompt, its parts a number of words or a picture, and how many tokens each branch has."""


@cache
def folder(family: Family) -> TemporaryDirectory[str]:
    """Of a checkpoint; it goes when the tests end."""
    made = TemporaryDirectory()
    build_tiny_vlm(
        made.name, ["a few words and pictures"], family=family, vocab_size=300, hidden_size=32, num_heads=2,
        num_kv_heads=1, num_layers=3, tower=TOWER,
    )  # fmt: skip
    return made


def build(family: Family, *, attention: str = NAME) -> PreTrainedModel:
    """A model whose weights are large enough that its answers are far from uniform."""
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
        Path(folder(family).name), attn_implementation=attention
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3.0 if "visual" in name else 6.0)
    return model.eval()


class Album:
    """Pictures of noise for one family, and how often they were loaded."""

    def __init__(self, family: Family) -> None:
        self._family, self.loaded = family, 0

    def picture(self, name: str, rows: int = 2, columns: int = 3) -> Picture:
        if self._family == "llava":
            rows = columns = SIDE // PATCH
        return Picture(source=name, digest=name, num_tokens=rows * columns, grid=(rows, columns))

    def load(self, pictures: Sequence[Picture]) -> Mapping[str, torch.Tensor]:
        self.loaded += len(pictures)
        if self._family == "llava":
            return {"pixel_values": torch.cat([_noise(picture, (1, 3, SIDE, SIDE)) for picture in pictures])}
        grids = [(1, picture.grid[0] * MERGE, picture.grid[1] * MERGE) for picture in pictures if picture.grid]
        width = 3 * 2 * PATCH * PATCH
        pixels = [_noise(p, (rows * columns, width)) for p, (_, rows, columns) in zip(pictures, grids, strict=True)]
        return {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}


def _noise(picture: Picture, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(picture.digest.encode())))


def pack(model: PreTrainedModel, album: Album, shapes: Sequence[Shape], *, seed: int = 0) -> Packed:
    """Random ids of trees, with placeholders where the prompts have pictures."""
    generator = torch.Generator().manual_seed(seed)
    place = model.config.image_token_id
    ids: list[int] = []
    trees, pictures, places = [], [], []
    for prompt, branches in shapes:
        start = len(ids)
        for part in prompt:
            if isinstance(part, Picture):
                pictures.append(part)
                places += range(len(ids), len(ids) + part.num_tokens)
                ids += [place] * part.num_tokens
            else:
                ids += _words(part, generator)
        trees.append(Tree(start, len(ids) - start, branches))
        ids += _words(sum(branches), generator)
    media = Media(pictures=tuple(pictures), places=torch.tensor(places), load=album.load) if pictures else None
    return from_trees(torch.tensor(ids), tuple(trees), media)


def _words(num: int, generator: torch.Generator) -> list[int]:
    return [int(token) for token in torch.randint(20, 250, (num,), generator=generator)]


def plain_inputs(model: PreTrainedModel, packed: Packed, row: torch.Tensor) -> dict[str, torch.Tensor]:
    """What transformers' forward pass takes for the row whose tokens stand at `row` [L] of the packed one."""
    ids = packed.input_ids[row].unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shown = pictures_at(packed, set(row.tolist()))
    if shown:
        assert packed.media is not None
        inputs |= packed.media.load(shown)
    if shown and hasattr(model.model, "get_rope_index"):
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    return inputs


def pictures_at(packed: Packed, row: set[int]) -> list[Picture]:
    """The pictures that stand in a row."""
    if packed.media is None:
        return []
    firsts = torch.tensor([0, *[picture.num_tokens for picture in packed.media.pictures]]).cumsum(0)[:-1]
    starts = packed.media.places[firsts].tolist()
    return [picture for picture, start in zip(packed.media.pictures, starts, strict=True) if start in row]


def plain_logprobs(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The targets' log-probs by the model's own forward pass over one row after the other."""
    scored = []
    prompts = [tree.prompt if tree.branches else 1 for tree in packed.trees for _ in range(tree.num_rows)]
    for places, prompt in zip(row_places(packed.trees), prompts, strict=True):
        row = places[places >= 0]
        logits = model(**plain_inputs(model, packed, row), use_cache=False).logits[0]
        own = packed.input_ids[row][prompt:].unsqueeze(-1)
        scored.append(logits.log_softmax(dim=-1)[prompt - 1 : -1].gather(-1, own).squeeze(-1))
    return torch.cat(scored)


def plain_padded_logprobs(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The same by one forward pass over all rows, padded on the right, pictures repeated row by row."""
    places = row_places(packed.trees)
    real = places >= 0
    ids = packed.input_ids[places.clamp_min(0)].masked_fill(~real, 0)
    shown = [picture for row in places for picture in pictures_at(packed, set(row.tolist()))]
    inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": real.long()}
    if shown:
        assert packed.media is not None
        inputs |= packed.media.load(shown)
    if shown and hasattr(model.model, "get_rope_index"):
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    logprobs = model(**inputs, use_cache=False).logits.log_softmax(dim=-1)
    prompts = [tree.prompt if tree.branches else 1 for tree in packed.trees for _ in range(tree.num_rows)]
    scored = []
    for number, prompt in enumerate(prompts):
        length = int(real[number].sum())
        own = ids[number, prompt:length].unsqueeze(-1)
        scored.append(logprobs[number, prompt - 1 : length - 1].gather(-1, own).squeeze(-1))
    return torch.cat(scored)
