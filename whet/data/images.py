"""Pictures between the words: `<image>` marks are replaced, in order, by the pictures in the row's `images`.

    {"messages": [{"role": "user", "content": "<image>Who?"}], "images": ["pics/1.jpg"]}
        -> Message("user", (Part("image", "/data/pics/1.jpg"), Part("text", "Who?")))

A row whose question is a plain text without marks has its pictures in front of that text. A row without the column
stays as it is: `<image>` is then what somebody wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from whet.data.decode import BadPicture
from whet.data.picture_files import DATA, WEB, bytes_of, embedded, identity, unpacked
from whet.data.row import Row, kind_of_value
from whet.schema.records import Message, Part

IMAGE = "<image>"
COLUMNS = ("images", "image")
_BESIDE = ("type", "index", "detail", "min_pixels", "max_pixels", "cache_control")
"""What image parts have beside their picture, or instead of it."""


def place_images(row: Row, messages: tuple[Message, ...], *, listed: bool) -> tuple[Message, ...]:
    """Put the row's `images` where the turns have `<image>` marks, in order. Rows without the column stay as they are.

    `listed` says that the turns were written as a list, so that pictures without marks belong nowhere. Raises
    DataError where the numbers differ.
    """
    images = row_images(row)
    if images is None:
        return _found(row, messages)
    parts = [part for message in messages if not isinstance(message.content, str) for part in message.content]
    holes = sum(part == Part("image", "") for part in parts)
    marks = holes + sum(message.text.count(IMAGE) for message in messages)
    named = [part.value for part in parts if part.type == "image" and part.value]
    if not marks and not named and images and not listed:
        return _in_front(images, messages)
    if named and not marks and not _same(named, images):
        raise row.error(
            "other pictures than those named in the turns", field="images", found=images, fix="empty it, or name those"
        )
    if marks != len(images) and (marks or not named):
        raise row.error(
            f"{len(images)} images for {marks} {IMAGE} marks",
            field="images",
            fix=f"write {IMAGE} in the text once for each image, where it belongs",
        )
    if not marks:
        return messages
    pending = list(images)
    return tuple(_with_images(message, pending) for message in messages)


def _same(named: list[str], images: list[str]) -> bool:
    """Whether they are none, or the same pictures in the same order: one may be a path and the other its bytes."""
    return not images or named == images or list(map(identity, named)) == list(map(identity, images))


def picture_source(row: Row, value: object, field: str) -> str:
    """The file of a picture, or its `data:` URL: whatever form a row has it in. Raises DataError where it is none."""
    match value:
        case bytes() if value:
            return unpacked(value)
        case {"bytes": bytes(data)} if data:
            return unpacked(data)
        case {"bytes": str(text)} if text and (found := embedded(text)):
            return unpacked(found)
        case {"path": str(inner)} | {"url": str(inner)} | {"image": str(inner)} if inner:
            return picture_source(row, inner, field)
        case str() if value.startswith(DATA):
            try:
                return unpacked(bytes_of(value))
            except BadPicture as bad:
                raise row.error(bad.problem, field=field, found=bad.found) from None
        case str() if value.lower().startswith(WEB):
            raise row.error(
                "is a web address, and nothing is downloaded", field=field, found=value,
                fix="download the pictures and give their paths",
            )  # fmt: skip
        case str() if value:
            found = embedded(value)
            return unpacked(found) if found else _path(row, row.as_text(value, field).removeprefix("file://"))
        case _:
            raise row.error(
                "is not the path of a picture", field=field, found=kind_of_value(value),
                fix="give a path, base64, or bytes",
            )  # fmt: skip


def _path(row: Row, name: str) -> str:
    """The path in the first of the row's folders that has it."""
    path = Path(name)
    with suppress(RuntimeError):  # a user nobody knows: the picture is missing
        path = path.expanduser()
    if path.is_absolute() or not row.folders:
        return str(path)
    places = [Path(folder, path).absolute() for folder in row.folders]
    return str(next((place for place in places if _exists(place)), places[0]))


def _exists(path: Path) -> bool:
    """Whether it is there; base64 of no known picture is no name that a file could have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def row_images(row: Row) -> list[str] | None:
    """The row's pictures, each a file or a `data:` URL; None where it has no column for them.

    Raises DataError where two columns have some.
    """
    found = {name: row.opened(row.maybe(name), name) for name in COLUMNS if name in row.values}
    full = [name for name, value in found.items() if value is not None and value not in ("", [], ())]
    if not full:
        return [] if "images" in found else None
    if len(full) > 1:
        raise row.error(f"two columns hold pictures: {' and '.join(full)}", field="images", fix="empty one of them")
    name, value = full[0], found[full[0]]
    if isinstance(value, list | tuple):
        return [picture_source(row, one, f"{name}[{index}]") for index, one in enumerate(value)]
    return [picture_source(row, value, name)]


def _found(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns of a row without a column of pictures: all of theirs must be named where they stand."""
    if any(Part("image", "") in message.content for message in messages if not isinstance(message.content, str)):
        raise row.error("0 images for a part {type: image} without its own", field="images", fix="list them in order")
    return messages


def _in_front(images: list[str], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The pictures before the first question."""
    first = next((index for index, message in enumerate(messages) if message.role == "user"), 0)
    message = messages[first]
    words = (Part("text", message.content),) if isinstance(message.content, str) else message.content
    shown = replace(message, content=(*(Part("image", image) for image in images), *words))
    return (*messages[:first], shown, *messages[first + 1 :])


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


def part_source(row: Row, piece: Mapping[str, Any], field: str) -> object:
    """What an image part of a turn names; None where its picture stands in the row's `images`, in order.

    Raises DataError for a part that says something else.
    """
    for key in ("image", "path", "url", "image_url"):
        if piece.get(key):
            return piece[key]
    match piece:
        case {"bytes": bytes() | str() as data} if data:
            return {"bytes": data}
        case {"source": {"data": str(data)}} if data:
            return {"bytes": data}
        case {"source": {"url": str(url)}} if url:
            return url
    other = [key for key, value in piece.items() if value and key not in _BESIDE]
    if other:
        raise row.error(
            f"an image part whose picture is under no known name: {', '.join(other)}", field=field,
            fix="a part is {type: image, image: PATH}, or {type: image} alone with the row's images",
        )  # fmt: skip
    return None
