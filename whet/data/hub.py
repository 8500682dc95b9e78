"""Rows of a data set on the Hugging Face hub (or a local folder in its layout), through `datasets`."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from whet.data.jsonrows import RawRow
from whet.errors import DataError
from whet.schema.records import Origin


def read_hub(name: str, *, subset: str | None = None, split: str = "train") -> Iterator[RawRow]:
    """The rows of one split; the number of an origin is the row's, counted from 1.

    Raises DataError where the data set, subset or split cannot be had. `datasets` keeps what it downloads.
    """
    for number, value in enumerate(_load(name, subset, split), 1):
        yield Origin(file=f"{name}[{split}]", line=number), value


def hub_files(name: str, *, subset: str | None = None, split: str = "train") -> list[Path]:
    """The Arrow files in which `datasets` keeps a split; none where it has it in memory only. Raises as `read_hub`."""
    return [Path(entry["filename"]) for entry in _load(name, subset, split).cache_files]


def _load(name: str, subset: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            "a hub data set needs the package datasets", file=name, fix="pip install datasets, or download the files"
        ) from None
    try:
        return _undecoded(datasets.load_dataset(name, subset, split=split), datasets)
    except Exception as error:
        # `datasets` raises a dozen unrelated types (network, unknown name or split, broken files), all user input.
        found = " ".join(str(error).split())[:200]
        raise DataError(
            "cannot be read from the hub",
            file=name,
            found=found,
            fix="check the name, `subset`, `split` and the network (HF_HUB_OFFLINE is off?); a local path must exist",
        ) from error


def _undecoded(rows: Any, datasets: Any) -> Any:
    """The rows with pictures as they were stored, {bytes, path}, rather than decoded on the way; sound and film too,
    which nobody reads, and which would ask for packages."""
    for name, feature in rows.features.items():
        raw = _raw(feature, datasets)
        if raw is not feature:
            rows = rows.cast_column(name, raw)
    return rows


def _raw(feature: Any, datasets: Any) -> Any:
    """The feature itself where nothing in it is decoded."""
    if getattr(feature, "decode", False):
        return replace(feature, decode=False)
    match feature:
        case dict():
            fields = {name: _raw(inner, datasets) for name, inner in feature.items()}
            return feature if all(fields[name] is feature[name] for name in fields) else fields
        case list():
            items = [_raw(inner, datasets) for inner in feature]
            return feature if all(map(operator.is_, items, feature)) else items
        case datasets.List() | datasets.LargeList():
            raw = _raw(feature.feature, datasets)
            return feature if raw is feature.feature else replace(feature, feature=raw)
        case _:
            return feature
