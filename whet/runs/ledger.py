"""What is done, and from which inputs: a stage is skipped only while its configuration and its inputs' content stand.

status.json of a stage holds its key (a hash of both), so that a changed input is found, named, and makes what follows
stale. Inputs are compared by content, never by date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

from whet.runs.files import appending, json_line, read_json, typed, typed_all, write_json
from whet.runs.layout import RunPaths, StagePaths
from whet.schema.artifacts import Measure, ModelRef, StageResult

WHOLE_FILE_BYTES = 256 * 2**20
"""Larger files are looked into here and there: reading 15 GB of weights to start a run helps nobody."""
EDGE_BYTES = 2**20
PIECE_BYTES = 2**16
STRIDE = 2**22
"""From one piece to the next in files that are no weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """status.json: the state of one stage."""

    name: str
    kind: str
    status: Literal["running", "done", "failed", "interrupted"]
    """`running` is also what a process leaves that was killed: see `whet.runs.lock`."""
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Content hash of everything the stage reads, by the name the plan gives it."""
    started: str
    finished: str | None = None
    seconds: float | None = None
    """Of every process that worked on it; while one does, those of the processes before."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: Mapping[str, str | None] | None = None
    evaluation: tuple[Mapping[str, Any], ...] = ()
    error: str | None = None

    @property
    def result(self) -> StageResult:
        """What a finished stage left, for the stages after it."""
        return StageResult(
            metrics=self.metrics,
            model=ModelRef(path=str(self.model["path"]), adapter=self.model["adapter"]) if self.model else None,
            evaluation=tuple(Measure(**measure) for measure in self.evaluation),
        )

    def why_stale(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str | None:
        """In words, what differs now from what this stage was made with; None where nothing does."""
        changed = [key for key in sorted({*self.inputs, *inputs}) if self.inputs.get(key) != inputs.get(key)]
        if changed:
            return "changed: " + ", ".join(changed)
        keys = first_difference(self.config, config)
        return f"changed: {keys}" if keys else None


MANNER = frozenset({
    "concurrency", "timeout", "retries", "start_timeout", "token_env", "price_per_million_prompt_tokens",
    "price_per_million_completion_tokens",
})  # fmt: skip
"""How a server is asked: what it says does not depend on it, and after an outage somebody will change it."""


def first_difference(left: Any, right: Any, path: str = "") -> str | None:
    """Dotted path of the first value in which two configurations differ, with both values; None where they agree.

    `MANNER` of servers is not compared.
    """
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        manner = MANNER if "retries" in left and "retries" in right else frozenset()
        for key in sorted({*left, *right} - manner):
            found = first_difference(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            found = first_difference(one, other, f"{path}.{number}")
            if found:
                return found
        return None
    return None if left == right else f"{path} ({_short(left)} -> {_short(right)})"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def read_status(paths: StagePaths) -> Status | None:
    if not paths.status.exists():
        return None
    status = typed(Status, read_json(paths.status), paths.status)
    evaluation = tuple(asdict(measure) for measure in typed_all(Measure, status.evaluation, paths.status))
    return replace(status, evaluation=evaluation)


def write_status(paths: StagePaths, status: Status) -> None:
    write_json(paths.status, asdict(status))


PROGRESS = ("*.jsonl", "*/*.jsonl", "checkpoints/*/state.json")
"""What stages write as they get on."""


def seconds_so_far(paths: StagePaths, earlier: Status) -> float:
    """How long earlier processes worked on a stage. One that was killed wrote nothing about itself; it worked from its
    status to the last line or checkpoint that it wrote."""
    seconds = earlier.seconds or 0.0
    if earlier.status == "running":
        begun = paths.status.stat().st_mtime
        written = [path.stat().st_mtime for name in PROGRESS for path in paths.root.glob(name)]
        seconds += max(0.0, max(written, default=begun) - begun)
    return round(seconds, 2)


def record_event(paths: RunPaths, event: str, **details: str | float | None) -> None:
    """Add a line to ledger.jsonl: the history of the run, one line per thing that happened."""
    with appending(paths.ledger) as handle:
        handle.write(json_line({"time": now(), "event": event, **details}))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def content_hash(path: Path, hash_of: Callable[[Path], str] | None = None) -> str:
    """SHA-256 of a file's bytes, or of the names and hashes of all files below a directory.

    Files above 256 MiB count by size, first and last MiB and pieces between, unless `hash_of` says how they are hashed.
    """
    hash_of = hash_of or _weights_hash
    if path.is_dir():
        files = [each for each in sorted(path.rglob("*")) if each.is_file()]
        parts = [f"{each.relative_to(path).as_posix()} {hash_of(each)}" for each in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return hash_of(path)


def _weights_hash(path: Path) -> str:
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of one file; size and time only decide whether a hash made in this process still holds."""
    with path.open("rb") as handle:
        if size <= WHOLE_FILE_BYTES:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        pieces = [(0, EDGE_BYTES), *((place, PIECE_BYTES) for place in _places(handle, size)), (size - EDGE_BYTES, -1)]
        for place, num in pieces:
            handle.seek(place)
            digest.update(handle.read(num))
        return digest.hexdigest()


def _places(handle: BinaryIO, size: int) -> Iterable[int]:
    """Where a large file is looked into: in the middle of each tensor, since training and merging change a tensor all
    over, however few of them; at even steps where it is no safetensors."""
    begin = 8 + int.from_bytes(handle.read(8), "little")
    if begin > size:
        return range(0, size, STRIDE)
    try:
        header = json.loads(handle.read(begin - 8))
        spans = [tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"]
        return sorted(begin + (start + end) // 2 for start, end in spans)
    except (ValueError, TypeError, KeyError, AttributeError):
        return range(0, size, STRIDE)
