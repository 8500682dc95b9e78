"""From a name in `data.files` to files that exist: a path, a directory, `@STAGE/FILE`, a registry name, or a hub id."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from whet.config.data import Data, Format, Source
from whet.data.files import SUFFIXES, is_data_file, read_file
from whet.data.hub import read_hub
from whet.data.jsonrows import RawRow
from whet.data.ledger import Ledger
from whet.data.reach import reaching, written
from whet.data.registry import entry_of, read_registry
from whet.data.row import PLAIN, Tags
from whet.errors import DataError, nearest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One source of a mixture, found: what to read and how."""

    name: str
    """What errors and origins call it: the words of the plan."""
    path: Path | None
    """File or directory; None for a hub data set."""
    hub: str | None = None
    format: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Tags = PLAIN
    weight: float = 1.0
    num_samples: int | None = None
    subset: str | None = None
    split: str = "train"
    images: tuple[str, ...] = ()
    """Folders in which relative paths of pictures are looked for, in this order."""


def locate(source: Source, data: Data, folders: Mapping[str, Path]) -> Place:
    """Where a source lies. Raises DataError, with the nearest name that exists, where it does not."""
    with reaching(source.path):
        place = _found(source, data, folders)
        return replace(place, images=image_folders(data, place.path))


def image_folders(data: Data, path: Path | None) -> tuple[str, ...]:
    """`data.image_folder` where that is given; else the folder of the data file, then the working directory.

    Raises DataError where `data.image_folder` is no folder.
    """
    if data.image_folder is not None:
        with reaching(data.image_folder, "data.image_folder"):
            folder = written(data.image_folder, "data.image_folder")
            if not folder.is_dir():
                fix = _suggestion(folder, ())
                raise DataError("no such folder", file=data.image_folder, field="data.image_folder", fix=fix)
        return (str(folder.absolute()),)
    here = str(Path.cwd())
    return (here,) if path is None else (str((path if path.is_dir() else path.parent).absolute()), here)


def _found(source: Source, data: Data, folders: Mapping[str, Path]) -> Place:
    format: Format = data.format if source.format == "auto" else source.format
    place = Place(
        name=source.path,
        path=None,
        format=format,
        columns=data.columns,
        weight=source.weight,
        num_samples=source.num_samples,
        subset=source.subset,
        split=source.split,
    )
    if data.registry and (found := _registered(source, data, place)):
        return found
    if source.path.startswith("@"):
        return _at(place, _stage_file(source.path, folders))
    path = written(source.path)
    if not path.exists() and _is_hub_id(source.path):
        return replace(place, hub=source.path)
    return _at(place, path, names=tuple(read_registry(data.registry)) if data.registry else ())


def _is_hub_id(name: str) -> bool:
    return (
        bool(_HUB_ID.fullmatch(name)) and not name.lower().endswith(SUFFIXES) and not Path(name.split("/")[0]).exists()
    )


def _registered(source: Source, data: Data, place: Place) -> Place | None:
    """The registry's entry of this name, the plan's own settings winning over it."""
    assert data.registry is not None
    registry = read_registry(data.registry)
    if source.path not in registry:
        return None
    entry = entry_of(data.registry, source.path, registry[source.path])
    found = Place(
        name=entry.path or str(entry.hub),
        path=None,
        hub=entry.hub,
        format=entry.format if place.format == "auto" else place.format,
        columns={**entry.columns, **data.columns},
        tags=entry.tags,
        weight=source.weight,
        num_samples=source.num_samples or entry.num_samples,
        subset=source.subset or entry.subset,
        split=source.split if source.split != "train" else entry.split,
    )
    return found if entry.path is None else _at(found, Path(entry.path))


def _at(place: Place, path: Path, names: tuple[str, ...] = ()) -> Place:
    """The place with its path, which must exist."""
    if not path.exists():
        if path.is_symlink():
            fix = "mend the link, or give the file itself"
            raise DataError("is a link that leads to no file", file=place.name, found=str(path.readlink()), fix=fix)
        raise DataError("no such file", file=place.name, fix=_suggestion(path, names))
    return replace(place, path=path)


def _suggestion(path: Path, names: tuple[str, ...]) -> str:
    parent = path.parent
    if not parent.is_dir():
        above = next((folder for folder in parent.parents if folder.is_dir()), Path("."))
        return f"the folder {parent} does not exist either; {above.resolve()} does"
    guess = nearest(path.name, (entry.name for entry in parent.iterdir()))
    if guess:
        return f"did you mean {parent / guess}?"
    named = nearest(str(path), names)
    if named:
        return f"did you mean {named} of the registry?"
    return f"relative paths start from {Path.cwd()}; a hub data set is written OWNER/NAME"


def _stage_file(name: str, folders: Mapping[str, Path]) -> Path:
    """The file an earlier stage wrote, `@NAME/FILE`."""
    stage, _, file = name[1:].partition("/")
    if stage not in folders:
        guess = nearest(stage, folders)
        known = ", ".join(folders) or "none"
        raise DataError(
            "no earlier stage of this name",
            file=name,
            found=repr(stage),
            fix=f"did you mean @{guess}/{file}?" if guess else f"earlier stages: {known}",
        )
    if not file:
        raise DataError("names a stage but no file of it", file=name, fix=f"write @{stage}/FILE")
    return folders[stage] / file


def read_place(place: Place, ledger: Ledger) -> Iterator[Iterator[RawRow | DataError]]:
    """The rows of a source, one iterator a file: each file may have its own format."""
    plain = place.format == "text"
    if place.hub is not None:
        yield read_hub(place.hub, subset=place.subset, split=place.split)
    for path, name in files_of(place, ledger):
        yield read_file(path, name, plain=plain)


def files_of(place: Place, ledger: Ledger) -> list[tuple[Path, str]]:
    """The files of a place in the order in which they are read, and what errors and origins call them.

    Raises DataError for a folder without data files; what else lies in it is noted. Of the hub there are none.
    """
    if place.path is None:
        return []
    with reaching(place.name):
        if not place.path.is_dir():
            return [(place.path, place.name)]
        return [(path, f"{place.name.rstrip('/')}/{path.name}") for path in _data_files(place.path, place.name, ledger)]


def _data_files(folder: Path, name: str, ledger: Ledger) -> list[Path]:
    """The data files that lie directly in a folder; the others are noted."""
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.is_file() and is_data_file(path)]
    if not files:
        below = [path.name for path in entries if path.is_dir() and _has_data(path)]
        fix = f"its folder {below[0]} has some" if below else f"it needs files named {', '.join(SUFFIXES)}"
        raise DataError(
            "no data files in this folder",
            file=name,
            found=f"{len(entries)} other entries" if entries else "an empty folder",
            fix=fix,
        )
    others = [path.name for path in entries if path not in files and not path.name.startswith(".")]
    if others:
        ledger.note(f"{name}: not read, no data files: {', '.join(others[:10])}{' …' if len(others) > 10 else ''}")
    return files


def _has_data(folder: Path) -> bool:
    """Whether there are data files in it, as far as one may look."""
    try:
        return any(map(is_data_file, folder.iterdir()))
    except OSError:
        return False
