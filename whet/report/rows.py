"""The data ledger of a stage as table rows: what was read, what became of it, and where the rest stood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from whet.runs.reader import StageView

MAX_LINES = 90
"""Characters of line numbers shown for one file; all of them are in data.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Rows dropped, truncated or thinned for one reason."""

    reason: str
    count: int
    places: str
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One split or task of a stage."""

    stage: str
    split: str
    read: int
    kept: int
    truncated: int
    dropped: int
    losses: tuple[Loss, ...]
    formats: str
    notes: tuple[str, ...]


def ledger_rows(stage: StageView) -> list[LedgerRow]:
    """One row for each ledger in the stage's data.json; empty ones are left out."""
    return [_row(stage.name, split, ledger) for split, ledger in _ledgers(stage.data or {}) if ledger["read"]]


def _ledgers(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A stage writes one ledger, or one for each split or task, which may itself be called `read`."""
    if isinstance(data.get("read"), int):
        yield "", data
    else:
        yield from data.items()


def _row(stage: str, split: str, ledger: Mapping[str, Any]) -> LedgerRow:
    losses = [_loss(reason, found) for reason, found in ledger["dropped"].items()]
    if ledger["truncated"]["count"]:
        losses.append(_loss("truncated", ledger["truncated"]))
    if "thinned" in ledger:
        losses.append(_loss("more pictures than data.max_images: some left out", ledger["thinned"]))
    return LedgerRow(
        stage=stage,
        split=split,
        read=ledger["read"],
        kept=ledger["kept"],
        truncated=ledger["truncated"]["count"],
        dropped=sum(found["count"] for found in ledger["dropped"].values()),
        losses=tuple(losses),
        formats=", ".join(f"{file} as {name}" for file, name in ledger.get("formats", {}).items()),
        notes=tuple(ledger.get("notes", ())),
    )


def _loss(reason: str, found: Mapping[str, Any]) -> Loss:
    places = "; ".join(f"{file}: {_short(lines)}" for file, lines in found["lines"].items())
    return Loss(reason=reason, count=found["count"], places=places, example=found.get("example", ""))


def _short(lines: str) -> str:
    if len(lines) <= MAX_LINES:
        return lines
    return lines[:MAX_LINES].rsplit(",", 1)[0] + ", \N{HORIZONTAL ELLIPSIS}"
