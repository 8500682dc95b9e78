"""What became of every row: read, kept, truncated, dropped and why, with the lines.

    >>> ledger = Ledger()
    >>> for line in (1, 2, 3): ledger.keep(Origin(file="a.jsonl", line=line))
    >>> ledger.drop("is empty", Origin(file="a.jsonl", line=2))
    >>> ledger.describe()
    '3 read, 2 kept, 1 dropped (1 is empty)'

It adds up at any time: read = kept + sum of dropped. Counted are records; a row that could not be read counts as one.
It stays small, however many rows are dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from whet.data.lines import Lines
from whet.errors import DataError
from whet.schema.records import Origin, Record


@dataclass(slots=True)
class Ledger:
    """Mutable on purpose: reading, sampling and fitting write into the same one."""

    kept: int = 0
    truncated: Lines = field(default_factory=Lines)
    thinned: Lines = field(default_factory=Lines)
    """Records with more pictures than `data.max_images`."""
    dropped: dict[str, Lines] = field(default_factory=dict)
    """Reason -> where the rows stood."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the full text of the first complaint."""
    formats: dict[str, str] = field(default_factory=dict)
    """File -> the format it was read as."""
    notes: list[str] = field(default_factory=list)
    """Things a reader should know that concern no single row."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> Ledger:
        """A ledger of records that are already in hand, all kept so far."""
        return cls(kept=sum(1 for _ in records))

    @property
    def read(self) -> int:
        return self.kept + self.num_dropped

    @property
    def num_dropped(self) -> int:
        return sum(len(lines) for lines in self.dropped.values())

    def keep(self, origin: Origin) -> None:
        """A record that was read and is used so far."""
        self.kept += 1

    def refuse(self, reason: str, origin: Origin, example: str | None = None) -> None:
        """A row that was read but never became a record in use."""
        self.dropped.setdefault(reason, Lines()).add(origin)
        if example is not None:
            self.examples.setdefault(reason, example)

    def refuse_error(self, error: DataError) -> None:
        """A row that could not be read: the reason is field and problem, list positions left out."""
        field = re.sub(r"\[\d+\]", "[]", error.field or "")
        reason = f"{field} {error.problem}" if field else error.problem.partition(" (")[0]
        self.refuse(reason, Origin(file=error.file or "", line=error.line or 0), str(error))

    def drop(self, reason: str, origin: Origin, example: str | None = None) -> None:
        """A record kept so far that is not used after all."""
        self.kept -= 1
        self.refuse(reason, origin, example)

    def truncate(self, origin: Origin) -> None:
        """A kept record whose end was cut."""
        self.truncated.add(origin)

    def thin(self, origin: Origin) -> None:
        """A kept record some of whose pictures were left out."""
        self.thinned.add(origin)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def merge(self, other: Ledger) -> None:
        """Add what another ledger counted."""
        self.kept += other.kept
        self.truncated.merge(other.truncated)
        self.thinned.merge(other.thinned)
        for reason, lines in other.dropped.items():
            self.dropped.setdefault(reason, Lines()).merge(lines)
        self.examples = {**other.examples, **self.examples}
        self.formats.update(other.formats)
        for text in other.notes:
            self.note(text)

    def describe(self) -> str:
        """One line for the console."""
        text = f"{self.read} read, {self.kept} kept"
        if self.truncated:
            text += f", {len(self.truncated)} truncated"
        if self.thinned:
            text += f", {len(self.thinned)} with fewer pictures"
        if self.num_dropped:
            parts = Counter({reason: len(lines) for reason, lines in self.dropped.items()}).most_common()
            text += f", {self.num_dropped} dropped ({', '.join(f'{count} {reason}' for reason, count in parts)})"
        return text

    def to_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "truncated": self.truncated.to_json(),
            **({"thinned": self.thinned.to_json()} if self.thinned else {}),
            "dropped": {
                reason: {**lines.to_json(), **({"example": self.examples[reason]} if reason in self.examples else {})}
                for reason, lines in self.dropped.items()
            },
            "formats": dict(self.formats),
            "notes": list(self.notes),
        }
