"""Pictures as a checkpoint sees them: how many tokens stand for each, and the tensors its vision tower takes.

    reader = picture_reader("Qwen/Qwen2.5-VL-7B-Instruct")
    cat = reader.read("cat.png")            Picture(source="cat.png", num_tokens=6, grid=(2, 3), ...)
    reader.load([cat])                      {"pixel_values": [24, 1176], "image_grid_thw": [[1, 4, 6]]}

The number of tokens follows from the picture's size alone, so that rows can be rendered without loading a pixel for
the model. The image processor is the checkpoint's own: its torchvision form where torchvision can be imported, else the
one on Pillow. Both resize to the same grid; their pixels differ in rounding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from whet.data.decode import BadPicture, decoded, size_of
from whet.data.picture_files import bytes_of, complaint, signature
from whet.data.recent import Recent
from whet.errors import ConfigError, ModelError
from whet.schema.pictures import Picture
from whet.schema.records import NOWHERE, Origin

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PictureReader", "picture_reader"]

KNOWN = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL or LLaVA"
"""Families whose pictures are understood."""
REMEMBERED = 16_384
"""Pictures whose tokens are remembered, about 10 MB: rows near each other show the same ones."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Qwen's way: a picture keeps its shape, scaled to multiples of `factor` and to between `low` and `high` pixels."""

    factor: int
    """Side of the square of pixels that becomes one token."""
    low: int
    high: int

    def tokens(self, height: int, width: int) -> tuple[int, tuple[int, int] | None]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        try:
            sides = smart_resize(height, width, factor=self.factor, min_pixels=self.low, max_pixels=self.high)
        except ValueError:
            raise BadPicture(
                "the picture is more than 200 times as long as it is wide", found=f"{width}×{height}", fix="crop it"
            ) from None
        rows, columns = sides[0] // self.factor, sides[1] // self.factor
        return rows * columns, (rows, columns)


@dataclass(frozen=True, slots=True)
class Fixed:
    """LLaVA's way: every picture is brought to the same size and has the same number of tokens."""

    num: int
    grid: tuple[int, int] | None

    def tokens(self, height: int, width: int) -> tuple[int, tuple[int, int] | None]:
        return self.num, self.grid


class PictureReader:
    """Reads pictures for one checkpoint."""

    def __init__(
        self, processor: Any, rule: Scaled | Fixed, *, place_id: int, reserved_ids: tuple[int, ...] = (),
        chat_template: str | None = None,
    ) -> None:  # fmt: skip
        self._processor, self._rule = processor, rule
        self.place_id = place_id
        """Token that holds the place of a picture; one in a template's text is expanded to as many as it needs."""
        self.reserved_ids = (place_id, *reserved_ids)
        """Tokens that no words may become: they would be taken for a picture or a video."""
        self.chat_template = chat_template
        """The processor's, where the checkpoint has one beside the tokenizer's."""
        settings = json.loads(processor.to_json_string())
        self.fingerprint = sha256(json.dumps([settings, repr(rule), place_id], sort_keys=True).encode()).hexdigest()
        """Changes whenever the same picture could give other tensors, or another number of tokens."""
        self._files: Recent[tuple[str, tuple[int, int]], Picture] = Recent(REMEMBERED)
        self._sizes: Recent[str, tuple[int, tuple[int, int] | None]] = Recent(REMEMBERED)

    def read(self, source: str, origin: Origin = NOWHERE) -> Picture:
        """How a row refers to the picture. A file is read again when it has changed, or many others came between.

        Raises DataError, with the row's place, where it is missing, unreadable or too large.
        """
        stamp = signature(source)
        if stamp is not None and (known := self._files.get((source, stamp))):
            return known
        try:
            picture = self._read(source, bytes_of(source))
        except BadPicture as bad:
            raise complaint(bad, source, origin) from None
        if stamp is not None:
            self._files.put((source, stamp), picture)
        return picture

    def load(self, pictures: Sequence[Picture]) -> Mapping[str, Tensor]:
        """What the vision tower takes of them, in their order. Raises DataError where one has changed since."""
        images = []
        for picture in pictures:
            try:
                data = bytes_of(picture.source)
                if self._digest(data) != picture.digest:
                    raise BadPicture(
                        "the picture has changed since its row was made", fix="start the stage anew (--fresh)"
                    )
                images.append(decoded(data))
            except BadPicture as bad:
                raise complaint(bad, picture.source, NOWHERE) from None
        return dict(self._processor(images=images, return_tensors="pt"))

    def _read(self, source: str, data: bytes) -> Picture:
        digest = self._digest(data)
        num_tokens, grid = self._sizes.get(digest) or self._sizes.put(digest, self._rule.tokens(*size_of(data)))
        return Picture(source=source, digest=digest, num_tokens=num_tokens, grid=grid)

    def _digest(self, data: bytes) -> str:
        return sha256(self.fingerprint.encode() + data).hexdigest()


def picture_reader(
    path: str,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
    with_template: bool = True,
) -> PictureReader | None:
    """The reader of a checkpoint's pictures; None where it reads text only, or pictures in a way not known here.

    `min_pixels` and `max_pixels` replace the processor's own limits; `with_template` lets its chat template stand in
    for a tokenizer's that has no place for pictures. Raises ModelError where a checkpoint that sees has no image
    processor, ConfigError for limits that it cannot keep.
    """
    config = _config(path, trust_remote_code)
    if getattr(config, "vision_config", None) is None:
        return None
    place_id = getattr(config, "image_token_id", None)
    if place_id is None:
        return None
    processor = _processor(path, trust_remote_code)
    rule = _rule(processor, config, min_pixels, max_pixels)
    if rule is None:
        return None
    video = getattr(config, "video_token_id", None)
    return PictureReader(
        processor, rule, place_id=int(place_id), reserved_ids=() if video is None else (int(video),),
        chat_template=_chat_template(path) if with_template else None,
    )  # fmt: skip


def _config(path: str, trust_remote_code: bool) -> Any:
    """The checkpoint's configuration; None where there is none, as in a folder that holds a tokenizer alone."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None


def _processor(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoImageProcessor

    backend = {} if _has_torchvision() else {"backend": "pil"}
    try:
        return AutoImageProcessor.from_pretrained(path, trust_remote_code=trust_remote_code, **backend)
    except (OSError, ValueError, KeyError, ImportError) as error:
        found = str(error).strip().splitlines()
        raise ModelError(
            "has no image processor, and its model takes pictures", file=path, found=found[0][:160] if found else None,
            fix="put the preprocessor_config.json of the checkpoint it was made from beside its weights",
        ) from error  # fmt: skip


def _has_torchvision() -> bool:
    """Whether torchvision is there and fits this torch; a wheel for another build fails on import."""
    try:
        import torchvision  # type: ignore[import-not-found]  # noqa: F401
    except Exception:
        return False
    return True


def _rule(processor: Any, config: Any, low: int | None, high: int | None) -> Scaled | Fixed | None:
    """How many tokens a picture has; limits of the plan are given to the processor."""
    if type(processor).__name__.startswith("Qwen2VLImageProcessor"):
        size = dict(processor.size)
        low, high = low or int(size["shortest_edge"]), high or int(size["longest_edge"])
        if low > high:
            raise ConfigError(
                "is above model.vision.max_pixels", field="model.vision.min_pixels", found=f"{low} > {high}",
                fix="lower it, or raise max_pixels",
            )  # fmt: skip
        processor.size = type(processor.size)(**{**size, "shortest_edge": low, "longest_edge": high})
        return Scaled(int(processor.patch_size) * int(processor.merge_size), low, high)
    if low is not None or high is not None:
        raise ConfigError(
            "cannot be kept: this checkpoint brings all pictures to one size",
            field="model.vision.min_pixels" if high is None else "model.vision.max_pixels", fix="leave it out",
        )  # fmt: skip
    return _fixed(processor, config)


def _fixed(processor: Any, config: Any) -> Fixed | None:
    """LLaVA: patches of the cropped picture, less or more the one that stands for the whole."""
    vision = config.vision_config
    if config.model_type != "llava" or vision.model_type not in ("clip_vision_model", "siglip_vision_model"):
        return None
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = dict(size).get("height"), dict(size).get("width")
    if not height or not width:
        return None
    rows, columns = int(height) // int(vision.patch_size), int(width) // int(vision.patch_size)
    whole = int(vision.model_type == "clip_vision_model")
    num = rows * columns + whole - int(config.vision_feature_select_strategy == "default")
    return Fixed(num, (rows, columns) if num == rows * columns else None)


def _chat_template(path: str) -> str | None:
    """The template that some checkpoints keep with their processor rather than with the tokenizer."""
    from transformers import ProcessorMixin

    try:
        settings, _ = ProcessorMixin.get_processor_dict(path)
    except (OSError, ValueError, KeyError):
        return None
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None
