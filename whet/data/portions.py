"""What is to be read, a block at a time, as any process can read it: rows, or the records that they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whet.config.data import Data, Format
from whet.data.blocks import Block, RowBlock, file_blocks, row_blocks
from whet.data.files import read_file
from whet.data.hub import read_hub
from whet.data.ledger import Ledger
from whet.data.locate import Place, files_of
from whet.data.row import Row
from whet.data.sources import Opened, as_row, drawn, known, open_rows, records_of
from whet.errors import DataError
from whet.schema.records import Record, RecordKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """A block of a source, and how its rows are read."""

    place: Place
    format: Format
    """`auto` where no row at the beginning of the file could be read."""
    kind: RecordKind
    block: Block
    fate: NDArray[np.uint8] | None = None
    """A number for each record: whether it is used. None uses all."""

    def rows(self) -> Iterator[Row | DataError]:
        """Under our column names."""
        if isinstance(self.block, RowBlock):
            yield from (known(row, self.place, self.format) for row in self.block.read)
            return
        for raw in self.block.rows():
            row = raw if isinstance(raw, DataError) else as_row(raw, self.place)
            yield known(row, self.place, self.format)

    def records(self, data: Data, ledger: Ledger) -> Iterator[Record]:
        """Those that are used; each row and each record left out is written into the ledger.

        Raises DataError at a bad row where the plan says so.
        """
        found = (record for row in self.rows() for record in records_of(row, self.format, self.kind, data, ledger))
        return drawn(found, self.fate, ledger)


def portions(
    places: Sequence[Place], kind: Callable[[Opened], RecordKind], ledger: Ledger
) -> Iterator[tuple[int, Portion]]:
    """Every block of every source, with the number of the source; what is noted of files goes into the ledger.

    `kind` says what a file's rows are read as. Raises DataError where a file cannot be read.
    """
    for number, place in enumerate(places):
        for opened, blocks in _files(place, ledger):
            found = kind(opened)
            for block in blocks:
                yield number, Portion(place=place, format=opened.format, kind=found, block=block)


def _files(place: Place, ledger: Ledger) -> Iterator[tuple[Opened, Iterator[Block]]]:
    """The files of a source: their first rows, by which the format is known, and their blocks."""
    if place.hub is not None:
        opened = open_rows(read_hub(place.hub, subset=place.subset, split=place.split), place)
        yield opened, row_blocks(opened.rows)
    plain = place.format == "text"
    for path, name in files_of(place, ledger):
        opened = open_rows(read_file(path, name, plain=plain), place)
        yield opened, file_blocks(path, name, plain=plain) or row_blocks(opened.rows)
