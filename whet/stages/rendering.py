"""How a stage writes for a checkpoint: its tokenizer and template, and its pictures where it takes any."""

from __future__ import annotations

from functools import lru_cache

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from whet.config.model import Model
from whet.data.pictures import PictureReader, picture_reader
from whet.data.render import Renderer
from whet.models.load import end_ids, load_tokenizer, template_of
from whet.schema.artifacts import ModelRef


def renderer_of(ref: ModelRef, model: Model, *, system: str | None = None) -> Renderer:
    """For a model, by the plan's model section. Raises ModelError where it cannot be written for."""
    return render_with(tokenizer_of(ref, model), ref.path, model, system=system)


def tokenizer_of(ref: ModelRef, model: Model) -> PreTrainedTokenizerBase:
    """The checkpoint's, with the template that the plan names, that was saved with the adapter, or its own."""
    template = model.chat_template or template_of(ref)
    return load_tokenizer(ref.path, chat_template=template, trust_remote_code=model.trust_remote_code)


def end_as_turns_do(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, path: str, by: Model
) -> None:
    """Let what is saved with a model say where the template of its training ends a turn. A base model's settings name
    the end of a text alone, and whoever serves it by them goes on behind every answer."""
    if tokenizer.chat_template:
        end = render_with(tokenizer, path, by).end_id
        if end not in (known := end_ids(tokenizer, model)):
            model.generation_config.eos_token_id = [end, *known]


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
