"""Pictures that came inside rows, put beside a file that is written: it then needs nothing of this machine's cache.

    rows.jsonl  rows_pictures/9f2c....png           {"images": ["rows_pictures/9f2c....png"], ...}
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from whet.data.picture_files import pictures_folder
from whet.schema.records import Conversation, Message, Preference, Prompt, Ranking, Rating, Record, Scored


class Beside:
    """Says where pictures will lie, and `copy` brings them there; `path` is the file that will be written."""

    def __init__(self, path: Path) -> None:
        self._folder, self._cache = path.with_name(f"{path.stem}_pictures"), pictures_folder()
        self._wanted: dict[Path, Path] = {}
        """Place of a copy -> what is copied."""

    def copy(self) -> None:
        """Put the pictures where the records shown say that they are. Raises OSError."""
        for target, path in self._wanted.items():
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def record(self, record: Record) -> Record:
        """The record with paths that start from the file's folder where it had those of the cache."""
        match record:
            case Conversation() | Prompt():
                return replace(record, messages=self._turns(record.messages))
            case Preference() | Rating() | Ranking() | Scored():
                return replace(record, prompt=self._turns(record.prompt))

    def _turns(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(
            message
            if isinstance(message.content, str)
            else replace(
                message,
                content=tuple(
                    replace(part, value=self.kept(part.value)) if part.type == "image" else part
                    for part in message.content
                ),
            )
            for message in messages
        )

    def kept(self, source: str) -> str:
        """A picture's path from the file's folder where it lies in the cache, else as it is."""
        path = Path(source)
        if self._cache is None or not path.is_relative_to(self._cache) or not path.is_file():
            return source
        target = self._folder / path.name
        self._wanted[target] = path
        return f"{self._folder.name}/{target.name}"
