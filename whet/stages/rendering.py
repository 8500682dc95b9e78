"""How a stage writes for a checkpoint: its tokenizer and template, and its pictures where it takes any."""

from __future__ import annotations

from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from whet.config.model import Model
from whet.data.pictures import PictureReader, picture_reader
from whet.data.render import Renderer
from whet.models.load import load_tokenizer, template_of
from whet.schema.artifacts import ModelRef


def renderer_of(ref: ModelRef, model: Model, *, system: str | None = None) -> Renderer:
    """For a model, by the plan's model section. Raises ModelError where it cannot be written for."""
    return render_with(tokenizer_of(ref, model), ref.path, model, system=system)


def tokenizer_of(ref: ModelRef, model: Model) -> PreTrainedTokenizerBase:
    """The checkpoint's, with the template that the plan names, that was saved with the adapter, or its own."""
    template = model.chat_template or template_of(ref)
    return load_tokenizer(ref.path, chat_template=template, trust_remote_code=model.trust_remote_code)


def render_with(
    tokenizer: PreTrainedTokenizerBase, path: str, model: Model, *, system: str | None = None
) -> Renderer:
    """The same with the checkpoint's tokenizer in hand."""
    return Renderer(tokenizer, system=system, reader=reader_of(path, model))


def reader_of(path: str, model: Model) -> PictureReader | None:
    """The reader of the checkpoint's pictures, always the same one; None where it takes none."""
    limits = model.vision.min_pixels, model.vision.max_pixels
    return _reader(path, *limits, model.trust_remote_code, model.chat_template is None)


@lru_cache(maxsize=8)
def _reader(
    path: str, least: int | None, most: int | None, trust_remote_code: bool, with_template: bool
) -> PictureReader | None:
    return picture_reader(
        path, min_pixels=least, max_pixels=most, trust_remote_code=trust_remote_code, with_template=with_template
    )
