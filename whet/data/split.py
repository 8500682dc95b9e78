"""Training and held-out records, no question on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from whet.data.kinds import as_prompt
from whet.data.picture_files import identity
from whet.errors import DataError
from whet.schema.records import Conversation, Message, Record


def split_records(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and held-out records: see `held_out`."""
    if not fraction:
        return list(records), []
    held = held_out(np.array([prompt_number(record, seed) for record in records], np.uint64), fraction).tolist()
    return (
        [record for record, out in zip(records, held, strict=True) if not out],
        [record for record, out in zip(records, held, strict=True) if out],
    )


def held_out(prompts: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """[R] which of R records are held out, by the number of the prompt of each.

    All records with the same prompt fall on one side. A prompt's side depends on its text and the seed through a hash,
    so that rows added later move few others. At least one prompt is held out where `fraction` > 0 and there are two.
    Raises DataError where all rows share one prompt.
    """
    order, places, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    if len(order) < 2:
        raise DataError(
            "all rows have the same prompt: nothing can be held out",
            field="data.eval_fraction",
            found=f"{len(prompts)} row{'s' if len(prompts) != 1 else ''} left",
            fix="give data.eval_files",
        )
    wanted, held, count = fraction * len(prompts), np.zeros(len(order), bool), 0
    for place in range(len(order) - 1):
        size = int(sizes[place])
        if count and count + size > wanted + 0.5:
            continue
        held[place] = True
        count += size
        if count >= wanted - 0.5:
            break
    return held[places]


def prompt_number(record: Record, seed: int) -> int:
    """64 bits of the prompt and the seed: prompts are held out in the order of these numbers."""
    return int.from_bytes(sha256(f"{seed}:{prompt_key(record)}".encode()).digest()[:8])


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
