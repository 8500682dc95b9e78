"""Training and held-out records, no question on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from whet.data.kinds import as_prompt
from whet.data.picture_files import identity
from whet.errors import DataError
from whet.schema.records import Conversation, Message, Record


def split_records(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and held-out records; all records with the same prompt fall on one side.

    A prompt's side depends on its text and the seed through a hash, so that rows added later move few others. At least
    one prompt is held out where `fraction` > 0 and there are two. Raises DataError where all rows share one prompt.
    """
    if not fraction:
        return list(records), []
    keys = [prompt_key(record) for record in records]
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    if len(sizes) < 2:
        raise DataError(
            "all rows have the same prompt: nothing can be held out",
            field="data.eval_fraction",
            found=f"{len(records)} rows",
            fix="give data.eval_files",
        )
    order = sorted(sizes, key=lambda key: sha256(f"{seed}:{key}".encode()).digest())
    wanted, held, count = fraction * len(records), set[str](), 0
    for key in order[:-1]:
        if held and count + sizes[key] > wanted + 0.5:
            continue
        held.add(key)
        count += sizes[key]
        if count >= wanted - 0.5:
            break
    return (
        [record for record, key in zip(records, keys, strict=True) if key not in held],
        [record for record, key in zip(records, keys, strict=True) if key in held],
    )


def prompt_key(record: Record) -> str:
    """What makes two records the same question: the turns before the first answer."""
    match record:
        case Conversation(messages=turns):
            first = next((index for index, message in enumerate(turns) if message.role == "assistant"), len(turns))
            turns = turns[:first]
        case _:
            turns = as_prompt(record).messages
    return repr([(message.role, _content(message)) for message in turns])


def _content(message: Message) -> object:
    """What is said and seen: a picture is its bytes, whatever its name."""
    if isinstance(message.content, str):
        return message.content
    return [identity(part.value) if part.type == "image" else part.value for part in message.content]
