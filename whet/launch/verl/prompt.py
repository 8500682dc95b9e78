"""A prompt again, of a row that `rows` has written: what whet's reward is given beside the completion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from whet.schema.records import Message, Origin, Part, Prompt


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """The prompt again, of `reward_model.ground_truth` and `extra_info`."""
    extra = row["extra_info"]
    return Prompt(
        messages=tuple(_message(said) for said in json.loads(extra["messages"])),
        reference=row["reward_model"]["ground_truth"] or None,
        answer=extra["answer"] or None,
        columns=json.loads(extra["columns"]),
        origin=Origin(file=extra["file"], line=extra["line"]),
    )


def _message(said: Mapping[str, Any]) -> Message:
    content = said["content"]
    return Message(said["role"], content if isinstance(content, str) else tuple(Part(**part) for part in content))
