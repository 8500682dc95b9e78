"""Prompts as rows of verl's: a Parquet file with the columns that its data set and reward function read.

    prompt          [{"role": "user", "content": "What is 2+3?"}]       with the system message; <image> for a picture
    data_source     "gsm8k_train"                                       the file's name: verl groups its measures by it
    ability         ""
    reward_model    {"style": "rule", "ground_truth": "5"}              the reference
    extra_info      {"split", "index", "file", "line", "messages", "columns", "answer"}
    images          [{"bytes": ...}]                                    where any row has pictures

`messages` and `columns` are JSON, `answer` is the row's own: what whet's reward is given beside the completion, exactly
as in a stage of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whet.data.decode import BadPicture, as_seen
from whet.data.picture_files import bytes_of, complaint
from whet.data.places import pictures_in
from whet.data.render import under_system
from whet.errors import DataError
from whet.runs.files import writing
from whet.schema.records import Message, Origin, Prompt

PLACEHOLDER = "<image>"
"""Where a picture stands in verl's prompts."""

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_SCHEMA = [
    ("prompt", pa.list_(_MESSAGE)),
    ("data_source", pa.string()),
    ("ability", pa.string()),
    ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
    (
        "extra_info",
        pa.struct([
            ("split", pa.string()), ("index", pa.int64()), ("file", pa.string()), ("line", pa.int64()),
            ("messages", pa.string()), ("columns", pa.string()), ("answer", pa.string()),
        ]),
    ),
]  # fmt: skip
_IMAGES = ("images", pa.list_(pa.struct([("bytes", pa.binary())])))


def write_rows(path: Path, prompts: Sequence[Prompt], *, split: str, system: str | None, pictures: bool) -> None:
    """One row a prompt, in order. Raises DataError for a prompt that verl cannot be given."""
    schema = pa.schema([*_SCHEMA, _IMAGES] if pictures else _SCHEMA)
    rows = [row_of(prompt, index, split=split, system=system) for index, prompt in enumerate(prompts)]
    with writing(path):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def row_of(prompt: Prompt, index: int, *, split: str, system: str | None) -> dict[str, Any]:
    if prompt.tools:
        raise _unfit(prompt.origin, "tools", "verl reads tools from a configuration of its own, not from rows")
    messages = under_system(prompt.messages, system)
    return {
        "prompt": [{"role": m.role, "content": _content(m, prompt.origin)} for m in messages],
        "data_source": Path(prompt.origin.file).name.split(".")[0] or "whet",
        "ability": "",
        "reward_model": {"style": "rule", "ground_truth": prompt.reference or ""},
        "extra_info": {
            "split": split,
            "index": index,
            "file": prompt.origin.file,
            "line": prompt.origin.line,
            "messages": json.dumps([_plain(message) for message in prompt.messages], ensure_ascii=False),
            "columns": _columns(prompt), "answer": prompt.answer or "",
        },
        "images": [{"bytes": _bytes(source, prompt.origin)} for source in pictures_in(messages)],
    }


def _content(message: Message, origin: Origin) -> str:
    if message.tool_calls:
        raise _unfit(origin, "messages", "a prompt in which the assistant calls tools cannot be handed to verl")
    if PLACEHOLDER in message.text:
        raise _unfit(origin, "messages", f"verl takes the text {PLACEHOLDER} for a picture")
    if isinstance(message.content, str):
        return message.content
    return "".join(part.value if part.type == "text" else PLACEHOLDER for part in message.content)


def _plain(message: Message) -> dict[str, Any]:
    content = message.content
    said = content if isinstance(content, str) else [{"type": part.type, "value": part.value} for part in content]
    return {"role": message.role, "content": said}


def _columns(prompt: Prompt) -> str:
    try:
        return json.dumps(dict(prompt.columns), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise _unfit(prompt.origin, "columns", f"a column cannot be written as JSON: {error}") from None


def _bytes(source: str, origin: Origin) -> bytes:
    try:
        return as_seen(bytes_of(source))
    except BadPicture as bad:
        raise complaint(bad, source, origin) from None


def _unfit(origin: Origin, field: str, problem: str) -> DataError:
    return DataError(problem, file=origin.file, line=origin.line, field=field, fix="leave the row out")
