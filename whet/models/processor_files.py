"""What tells how a checkpoint's pictures are prepared, copied byte by byte from checkpoint to checkpoint.

Not loaded and saved again: transformers writes other files than it reads, and without torchvision it cannot open all.
What is left out is a chat template that another has replaced: processors would take it before the new one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
OLD_TEMPLATE, TEMPLATE, KEY = "chat_template.json", "chat_template.jinja", "chat_template"


def copy_processor(source: str, directory: Path) -> None:
    """Copy those files that the checkpoint `source`, a directory or hub id, has into a directory, where its tokenizer
    has been saved."""
    replaced = _replaced(source, directory)
    for name in FILES if replaced else (*FILES, OLD_TEMPLATE):
        found, copy = _file(source, name), directory / name
        if found is None or found.resolve() == copy.resolve():
            continue
        shutil.copyfile(found, copy)
        if replaced and KEY in (settings := _read(copy)):
            del settings[KEY]
            copy.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replaced(source: str, directory: Path) -> bool:
    """Whether the tokenizer was saved with another chat template than the checkpoint's tokenizer has. The same one may
    stand beside one of the processor's that only pictures need (LLaVA)."""
    saved = directory / TEMPLATE
    return saved.is_file() and saved.read_text(encoding="utf-8") != _own_template(source)


def _own_template(source: str) -> str | None:
    """The chat template of the checkpoint's tokenizer: a file, or in older ones a part of its settings."""
    file, settings = _file(source, TEMPLATE), _file(source, "tokenizer_config.json")
    if file is not None:
        return file.read_text(encoding="utf-8")
    own = None if settings is None else _read(settings).get(KEY)
    if isinstance(own, list):  # several of names that transformers knows
        own = {one["name"]: one["template"] for one in own}.get("default")
    return own


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return read


def _file(source: str, name: str) -> Path | None:
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:  # not a checkpoint, or a hub that cannot be reached and has not been asked for this file before
        return None
    return None if found is None else Path(found)
