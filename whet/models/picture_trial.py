"""Whether a model is given its pictures as its own forward pass would give them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor
from transformers import PreTrainedModel

from whet.errors import ModelError
from whet.models.mode import agree, evaluating
from whet.models.rows import from_trees
from whet.schema.packed import Packed, Tree
from whet.schema.pictures import Media


def try_pictures(whole: PreTrainedModel, media: Media, padded: Callable[[Packed], Tensor]) -> None:
    """Raises ModelError where a row with the first picture gets other numbers from `padded`, [T, H], than by the
    model's own forward pass."""
    device, picture = next(whole.parameters()).device, media.pictures[0]
    tried = torch.arange(1, 1 + picture.num_tokens, device=device)
    types = torch.zeros(picture.num_tokens + 3, dtype=torch.int64, device=device).index_fill_(0, tried, 1)
    ids = types * whole.config.image_token_id
    one = Media(pictures=(picture,), places=tried, load=media.load)
    row = from_trees(ids, (Tree(0, len(ids)),), one)
    with torch.no_grad(), evaluating(whole), torch.autocast(device.type, enabled=False):
        same = agree(whole, padded(row).float(), _own(whole, ids, types, one).float())
    if not same:
        raise ModelError(
            f"{type(whole).__name__} takes pictures in a way that is not known here", field="model.path",
            fix="take a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or LLaVA checkpoint",
        )  # fmt: skip


def _own(whole: PreTrainedModel, ids: Tensor, types: Tensor, media: Media) -> Tensor:
    """[T, H] of one row with pictures by the model's own forward pass; types [T] are 1 at a picture's tokens."""
    base = getattr(whole, whole.base_model_prefix)
    told = {"mm_token_type_ids", "token_type_ids"} & signature(base.forward).parameters.keys()
    seen = {name: tensor.to(ids.device) for name, tensor in media.load(media.pictures).items()}
    hidden: Tensor = base(
        input_ids=ids.unsqueeze(0), attention_mask=torch.ones_like(ids).unsqueeze(0), use_cache=False, **seen,
        **{name: types.unsqueeze(0) for name in told},
    ).last_hidden_state  # fmt: skip
    return hidden[0]
