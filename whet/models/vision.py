"""The eyes of a vision-language model: features of pictures by its own tower and projector, once a picture.

A frozen tower's features are kept, within a limit, so a picture that comes again is not even read. They are computed
one picture at a time: products of more rows may round differently, and a sample must not know its neighbours. A tower
that trains sees all pictures of a packed row in one pass, with gradient, and nothing is kept. Whoever uses a model uses
the same `Vision`: an engine and the training that follows it look at a picture once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from whet.errors import ModelError
from whet.models.mode import evaluating
from whet.schema.pictures import LoadPictures, Media, Picture

KEEP_BYTES = 512 << 20
"""Features that are kept: about a hundred large pictures of a 7B model."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a model sees at the n tokens of a picture, or of several."""

    tokens: Tensor
    """[n, H], in place of embeddings."""
    deep: tuple[Tensor, ...] = ()
    """[n, H] each, added to the output of the language model's first layers (DeepStack, 2406.04334); Qwen3-VL."""

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in (self.tokens, *self.deep))


def language_layers(whole: PreTrainedModel) -> torch.nn.Module:
    """The layers between embeddings and head; of a vision-language model those of its language model."""
    base: torch.nn.Module = getattr(whole, whole.base_model_prefix)
    return getattr(base, "language_model", base)


def vision_parts(whole: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Tower and projector by their names in the model; none in a model of text."""
    base: torch.nn.Module = getattr(whole, whole.base_model_prefix)
    if not hasattr(base, "language_model"):
        return {}
    prefix = whole.base_model_prefix
    return {f"{prefix}.{name}": part for name, part in base.named_children() if name != "language_model"}


class Vision:
    """Tower and projector as a function from pictures to features."""

    def __init__(self, whole: PreTrainedModel, *, keep_bytes: int = KEEP_BYTES) -> None:
        self._base: Any = getattr(whole, whole.base_model_prefix)
        self._parts, self._keep_bytes = list(vision_parts(whole).values()), keep_bytes
        self._kept: OrderedDict[tuple[str, torch.dtype | None], Features] = OrderedDict()
        """By digest and type of the products; the last one used comes last."""
        self._kept_bytes = 0
        self._stamp: tuple[int, ...] = ()
        self.in_grid = hasattr(self._base, "get_rope_index")
        """Whether positions of a picture's tokens are those of a grid."""
        self.tried = False
        """Whether a row with a picture is known to get the numbers of the model's own forward pass."""

    @classmethod
    def of(cls, whole: PreTrainedModel) -> Vision | None:
        """The model's one; None where it takes no pictures."""
        base = getattr(whole, whole.base_model_prefix)
        if not vision_parts(whole) or not hasattr(base, "get_image_features"):
            return None
        if whole not in _OF_MODELS:
            _OF_MODELS[whole] = cls(whole)
        return _OF_MODELS[whole]

    @classmethod
    def share(cls, source: PreTrainedModel, twin: PreTrainedModel) -> None:
        """Let another model use the source's, where its eyes have the very same weights."""
        vision, other = cls.of(source), cls.of(twin)
        if vision is not None and other is not None:
            pairs = zip(vision._parameters(), other._parameters(), strict=True)
            if all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs):
                _OF_MODELS[twin] = vision

    def features(self, media: Media) -> Features:
        """Those of all pictures, in the order of their tokens.

        Raises ModelError where a picture has more or fewer features than placeholders.
        """
        distinct = list({picture.digest: picture for picture in media.pictures}.values())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self._parameters()):
            made = self.look(distinct, media.load)
        else:
            made = self._known(distinct, media.load)
        by_digest = dict(zip((picture.digest for picture in distinct), made, strict=True))
        parts = [by_digest[picture.digest] for picture in media.pictures]
        deep = zip(*(part.deep for part in parts), strict=True)
        return Features(torch.cat([part.tokens for part in parts]), tuple(torch.cat(layer) for layer in deep))

    def look(self, pictures: Sequence[Picture], load: LoadPictures) -> list[Features]:
        """The features of each, by one pass of the tower over all of them."""
        device = next(self._parameters()).device
        taken = {name: tensor.to(device) for name, tensor in load(pictures).items()}
        out = self._base.get_image_features(**taken, return_dict=True)
        deep = zip(*(getattr(out, "deepstack_features", None) or ()), strict=True)
        parts = list(deep) or [()] * len(out.pooler_output)
        made = [Features(tokens, tuple(part)) for tokens, part in zip(out.pooler_output, parts, strict=True)]
        for picture, features in zip(pictures, made, strict=True):
            if len(features.tokens) != picture.num_tokens:
                raise ModelError(
                    f"the model sees {len(features.tokens)} tokens in a picture and its row holds a place for "
                    f"{picture.num_tokens}", field="model.path", found=picture.source[:80],
                    fix="the image processor beside the checkpoint is not the model's",
                )  # fmt: skip
        return made

    def _known(self, pictures: Sequence[Picture], load: LoadPictures) -> list[Features]:
        if not pictures:
            return []
        keeps, kind = self._keeps(), _autocast_dtype(next(self._parameters()))
        made = []
        # An engine asks in inference mode, whose tensors a later training step could not use; to leave that mode
        # switches gradients on.
        with torch.inference_mode(False), torch.no_grad(), ExitStack() as modes:
            for part in self._parts:
                modes.enter_context(evaluating(part))
            for picture in pictures:
                features = self._kept.pop((picture.digest, kind), None)
                if features is None:
                    (features,) = self.look([picture], load)
                    self._kept_bytes += features.num_bytes if keeps else 0
                if keeps:
                    self._kept[picture.digest, kind] = features
                made.append(features)
        while self._kept_bytes > self._keep_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return made

    def _keeps(self) -> bool:
        """Whether features may be kept; those of other weights are forgotten.

        Nothing is kept of weights that train, nor under adapters, which are switched on and off without a trace in the
        weights.
        """
        stamp = tuple(parameter._version for parameter in self._parameters())
        trains = any(parameter.requires_grad for parameter in self._parameters())
        modules = (module for part in self._parts for module in part.modules())
        keeps = not trains and not any(isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in modules)
        if stamp != self._stamp or not keeps:
            self._kept.clear()
            self._kept_bytes, self._stamp = 0, stamp
        return keeps

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for part in self._parts for parameter in part.parameters())


_OF_MODELS: WeakKeyDictionary[PreTrainedModel, Vision] = WeakKeyDictionary()


def _autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """The type of the tower's products where autocast gives it another than its weights have."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
