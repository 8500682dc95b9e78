"""A value of the plan and the place it was written at, so that a complaint can name file and line.

train:         line 1: Node({"epochs": ...}, "plan.yaml", 1, "train")
  epochs: 2    line 2: Node(2, "plan.yaml", 2, "train.epochs")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the plan and where it was written."""

    value: Any
    """A scalar, `dict[str, Node]` or `list[Node]`."""
    file: str | None
    """File as the user named it, `override`, or None for values handed over in Python."""
    line: int | None
    path: str
    """Dotted path as the user wrote it, e.g. `train.epochs`."""

    @property
    def is_dict(self) -> bool:
        return isinstance(self.value, dict)

    def get(self, key: str) -> Any:
        """The plain value of a scalar entry, or None."""
        entry = self.value.get(key) if self.is_dict else None
        return None if entry is None else entry.value

    def replace(self, value: Any) -> Node:
        """The same place with another value."""
        return Node(value, self.file, self.line, self.path)

    def with_entry(self, key: str, entry: Node) -> Node:
        return self.replace({**self.value, key: entry})

    def error(self, problem: str, *, found: str | None = None, fix: str | None = None) -> ConfigError:
        return ConfigError(problem, file=self.file, line=self.line, field=self.path or None, found=found, fix=fix)


def from_python(value: object, *, file: str | None = None, line: int | None = None, path: str = "") -> Node:
    """Nodes for plain Python values, all with one place."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError("a key must be text", file=file, line=line, field=path or None, found=repr(key))
        return Node(
            {k: from_python(v, file=file, line=line, path=join(path, k)) for k, v in value.items()}, file, line, path
        )
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        entries = [from_python(v, file=file, line=line, path=join(path, str(i))) for i, v in enumerate(value)]
        return Node(entries, file, line, path)
    return Node(str(value) if isinstance(value, Path) else value, file, line, path)


def plain(node: Node) -> Any:
    """Back to plain Python values."""
    if isinstance(node.value, dict):
        return {key: plain(entry) for key, entry in node.value.items()}
    if isinstance(node.value, list):
        return [plain(entry) for entry in node.value]
    return node.value


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def describe(value: object) -> str:
    """A short text for "found ...": what the user wrote, or what kind of thing it is."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return "true" if value else "false"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "...")
        case _:
            text = str(value)
            return text if len(text) <= 60 else text[:57] + "..."
