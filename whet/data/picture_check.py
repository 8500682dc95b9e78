"""The pictures of many records, each file looked at once: what is wrong with them, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from whet.data.decode import BadPicture, size_of
from whet.data.ledger import Ledger
from whet.data.picture_files import bytes_of, complaint
from whet.data.places import pictures_of
from whet.data.recent import Recent
from whet.errors import DataError
from whet.schema.records import Record

REMEMBERED = 65_536
"""Pictures that are not looked at again; of more, those long ago are forgotten."""

Size = tuple[int, int]
"""Height and width in pixels."""


def with_sound_pictures(
    records: Iterable[Record], on_bad_row: Literal["error", "drop"], ledger: Ledger
) -> list[Record]:
    """The records whose pictures can all be read. At the first other it raises DataError, or drops it, as the plan
    says."""
    check = PictureCheck()
    sound: list[Record] = []
    for record in records:
        error = check.problem(record)
        if error is None:
            sound.append(record)
        elif on_bad_row == "error":
            raise error
        else:
            ledger.drop(error.problem, record.origin, str(error))
    return sound


@dataclass(slots=True)
class PictureCheck:
    """Adds up as records are shown to it."""

    num: int = 0
    """Pictures of records, one that stands in several counted each time."""
    rows: int = 0
    """Records with any."""
    smallest: Size | None = None
    largest: Size | None = None
    """Of all that can be read."""
    _seen: Recent[str, Size | BadPicture] = field(default_factory=lambda: Recent(REMEMBERED))
    """Source -> its size, or what is wrong with it."""

    def problem(self, record: Record) -> DataError | None:
        """What the first unusable picture of a record would stop a run with."""
        sources = pictures_of(record)
        self.num += len(sources)
        self.rows += bool(sources)
        for source in sources:
            found = self._seen.get(source) or self._seen.put(source, self._look(source))
            if isinstance(found, BadPicture):
                return complaint(found, source, record.origin)
            self._measure(found, found)
        return None

    def merge(self, other: PictureCheck) -> None:
        """Add what another counted."""
        self.num += other.num
        self.rows += other.rows
        if other.smallest is not None and other.largest is not None:
            self._measure(other.smallest, other.largest)

    def forget(self) -> None:
        """Let go of the memory of pictures, and keep the counts."""
        self._seen = Recent(0)

    def _measure(self, small: Size, large: Size) -> None:
        self.smallest = min(self.smallest or small, small, key=math.prod)
        self.largest = max(self.largest or large, large, key=math.prod)

    def describe(self) -> str | None:
        """A line on what there is; None without pictures."""
        if not self.num:
            return None
        text = f"{self.num} picture{'s' if self.num != 1 else ''} in {self.rows} row{'s' if self.rows != 1 else ''}"
        if self.smallest is None or self.largest is None:
            return text
        low, high = (f"{width}×{height}" for height, width in (self.smallest, self.largest))
        return f"{text}, from {low} to {high} pixels" if low != high else f"{text}, {low} pixels"

    def _look(self, source: str) -> Size | BadPicture:
        try:
            return size_of(bytes_of(source))
        except BadPicture as bad:
            return BadPicture(bad.problem, bad.found, bad.fix)  # without its frames, which hold the bytes
