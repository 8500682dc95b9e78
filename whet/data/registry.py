"""LLaMA-Factory's `dataset_info.json` as a list of names for data.

    {"mine": {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "turns"}}}

Its documented defaults hold also where `columns` lists only some of its keys, and an unknown key is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.config.data import Format
from whet.data.row import PLAIN, Tags, kind_of_value, quote
from whet.errors import DataError, nearest

KEYS = (
    "file_name",
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
    "formatting",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
    "columns",
    "tags",
)
COLUMN_NAMES = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "tools": "tools",
    "images": "images",
    "videos": "videos",
    "audios": "audios",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}
"""The registry's word for a column -> ours."""
TAG_ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "call",
    "system_tag": "system",
}
TAG_KEYS = ("role_tag", "content_tag", *TAG_ROLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One data set of a registry."""

    path: str | None
    """File or folder, as found beside the registry; None for a hub data set."""
    hub: str | None
    format: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our column name -> the file's."""
    tags: Tags = PLAIN
    subset: str | None = None
    split: str = "train"
    num_samples: int | None = None


def read_registry(path: str) -> dict[str, Mapping[str, Any]]:
    """The registry's entries as written. Raises DataError where it is missing or is no object of objects."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError("no such file", file=path, field="data.registry") from None
    except OSError as error:
        raise DataError(
            "cannot be read", file=path, field="data.registry", found=error.strerror or str(error)
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON ({error.msg})", file=path, line=error.lineno) from None
    except UnicodeDecodeError:
        raise DataError("is not UTF-8", file=path, fix="save it as UTF-8") from None
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise DataError(
            "is no dataset_info.json: an object with one object per data set", file=path, found=kind_of_value(value)
        )
    return value


def entry_of(registry: str, name: str, raw: Mapping[str, Any]) -> Entry:
    """One entry, checked. Raises DataError for unknown keys and for sources whet does not fetch."""
    place = f"{registry}[{name}]"
    _known(place, "", raw, KEYS)
    columns, tags = _object(place, raw, "columns"), _object(place, raw, "tags")
    _known(place, "columns.", columns, COLUMN_NAMES)
    _known(place, "tags.", tags, TAG_KEYS)
    for key in ("script_url", "cloud_file_name"):
        if raw.get(key):
            raise DataError(
                "is not supported: it would run or fetch code from elsewhere",
                file=place,
                field=key,
                fix="download the rows and give file_name",
            )
    if raw.get("folder"):
        raise DataError("is not supported", file=place, field="folder", fix="give the hub's `subset` instead")
    hub, file_name = _text(place, raw, "hf_hub_url"), _text(place, raw, "file_name")
    if hub is None and file_name is None:
        foreign = next((key for key in ("ms_hub_url", "om_hub_url") if raw.get(key)), None)
        raise DataError(
            "only the Hugging Face hub can be reached" if foreign else "names no data",
            file=place,
            field=foreign or "file_name",
            fix="download the rows and give file_name",
        )
    return Entry(
        path=None if file_name is None or hub else str(Path(registry).parent / file_name),
        hub=hub,
        format=_format(place, raw, columns),
        columns={COLUMN_NAMES[key]: theirs for key in columns if (theirs := _text(place, columns, key, "columns."))},
        tags=_tags({key: _text(place, tags, key, "tags.") for key in tags}),
        subset=_text(place, raw, "subset"),
        split=_text(place, raw, "split") or "train",
        num_samples=_count(place, raw),
    )


def _known(place: str, prefix: str, keys: Iterable[str], known: Iterable[str]) -> None:
    for key in keys:
        if key not in known:
            guess = nearest(key, known)
            raise DataError(
                "unknown key",
                file=place,
                field=prefix + key,
                fix=f"did you mean {guess!r}?" if guess else f"known are {', '.join(known)}",
            )


def _object(place: str, raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise DataError(f"is {kind_of_value(value)}, not an object", file=place, field=key)
    return value


def _text(place: str, raw: Mapping[str, Any], key: str, prefix: str = "") -> str | None:
    """The text under a key; None where there is none, or an empty one."""
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"is {kind_of_value(value)}, not a text", file=place, field=prefix + key, found=quote(value))
    return value or None


def _count(place: str, raw: Mapping[str, Any]) -> int | None:
    value = raw.get("num_samples")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise DataError("is not a positive number", file=place, field="num_samples", found=repr(value))
    return value


def _format(place: str, raw: Mapping[str, Any], columns: Mapping[str, Any]) -> Format:
    if raw.get("ranking"):
        return "preference"
    if columns.get("kto_tag"):
        return "kto"
    match raw.get("formatting", "alpaca"):
        case "alpaca":
            return "alpaca"
        case "sharegpt":
            return "sharegpt"
        case "openai":
            return "messages"
        case other:
            guess = nearest(str(other), ("alpaca", "sharegpt", "openai"))
            raise DataError(
                "unknown formatting",
                file=place,
                field="formatting",
                found=repr(other),
                fix=f"use {guess or 'alpaca, sharegpt or openai'}",
            )


def _tags(tags: Mapping[str, str | None]) -> Tags:
    return Tags(
        role=tags.get("role_tag"),
        content=tags.get("content_tag"),
        roles={word: role for key, role in TAG_ROLES.items() if (word := tags.get(key))},
    )
