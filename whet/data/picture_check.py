"""The pictures of many records, each file looked at once: what is wrong with them, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from whet.data.decode import BadPicture, size_of
from whet.data.ledger import Ledger
from whet.data.picture_files import bytes_of, complaint
from whet.data.places import pictures_of
from whet.errors import DataError
from whet.schema.records import Record


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
    sizes: dict[str, tuple[int, int] | BadPicture] = field(default_factory=dict)
    """Source -> height and width in pixels, or what is wrong with it."""

    def problem(self, record: Record) -> DataError | None:
        """What the first unusable picture of a record would stop a run with."""
        sources = pictures_of(record)
        self.num += len(sources)
        self.rows += bool(sources)
        for source in sources:
            found = self.sizes.get(source) or self._look(source)
            if isinstance(found, BadPicture):
                return complaint(found, source, record.origin)
        return None

    def describe(self) -> str | None:
        """A line on what there is; None without pictures."""
        if not self.num:
            return None
        text = f"{self.num} picture{'s' if self.num != 1 else ''} in {self.rows} row{'s' if self.rows != 1 else ''}"
        sizes = sorted((h * w, f"{w}×{h}") for h, w in (s for s in self.sizes.values() if isinstance(s, tuple)))
        if not sizes:
            return text
        return f"{text}, from {sizes[0][1]} to {sizes[-1][1]} pixels" if len(sizes) > 1 else f"{text}, {sizes[0][1]}"

    def _look(self, source: str) -> tuple[int, int] | BadPicture:
        try:
            self.sizes[source] = size_of(bytes_of(source))
        except BadPicture as bad:
            self.sizes[source] = bad
        return self.sizes[source]
