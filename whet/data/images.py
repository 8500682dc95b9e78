"""Pictures between the words: `<image>` marks are replaced, in order, by the paths in the row's `images`."""

from __future__ import annotations

from dataclasses import replace

from whet.data.row import Row, kind_of_value
from whet.schema.records import Message, Part

IMAGE = "<image>"


def place_images(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the row's `images` where the turns have `<image>` marks, in order. Rows without the column stay as they are.

    Raises DataError where the numbers differ.
    """
    images = _image_paths(row)
    parts = [part for message in messages if not isinstance(message.content, str) for part in message.content]
    holes = sum(part == Part("image", "") for part in parts)
    marks = holes + (sum(message.text.count(IMAGE) for message in messages) if images else 0)
    named = sum(part.type == "image" for part in parts) - holes
    if marks != len(images) and not (marks == 0 and named == len(images)):
        raise row.error(
            f"{len(images)} images for {marks} {IMAGE} marks",
            field="images",
            fix=f"write {IMAGE} in the text once for each image, where it belongs",
        )
    if not marks:
        return messages
    pending = list(images)
    return tuple(_with_images(message, pending) for message in messages)


def _image_paths(row: Row) -> list[str]:
    value = row.maybe("images") if "images" in row else row.maybe("image")
    value = row.opened(value, "images")
    if value in (None, "", []):
        return []
    paths = value if isinstance(value, list) else [value]
    for index, path in enumerate(paths):
        if not isinstance(path, str) or not path:
            raise row.error(
                "is not the path of a picture",
                field=f"images[{index}]",
                found=kind_of_value(path),
                fix="store pictures as files and give their paths",
            )
    return paths


def _with_images(message: Message, pending: list[str]) -> Message:
    """The message with its marks replaced by the front of `pending`, which is used up."""
    if isinstance(message.content, str):
        return replace(message, content=_interleave(message.content, pending)) if IMAGE in message.content else message
    parts: list[Part] = []
    for part in message.content:
        if part.type == "text":
            parts += _interleave(part.value, pending)
        else:
            parts.append(part if part.value else Part("image", pending.pop(0)))
    return replace(message, content=tuple(parts))


def _interleave(text: str, pending: list[str]) -> tuple[Part, ...]:
    first, *others = text.split(IMAGE)
    parts = [Part("text", first)]
    for piece in others:
        parts += [Part("image", pending.pop(0)), Part("text", piece)]
    return tuple(part for part in parts if part.value)
