"""`completions.jsonl` of an online stage, of which a page shows little and which may be large.

    index = index_rounds(paths.completions)
    rows = read_round(paths.completions, index[12], prompts=4)

One pass over the lines finds where each round lies, and nothing but what is shown is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from whet.runs.files import reading, typed

Span = tuple[int, int]
"""First byte, and the one behind the last."""
ROUND = re.compile(rb'\{"step": \d+, "round": (\d+),')
"""How a line begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRow:
    """One line: what was asked and said, what it was worth, and what training made of it."""

    step: int
    """The step that trained on it first."""
    round: int
    key: str
    """ROUND/PROMPT#NUMBER, the number among the samples of the prompt."""
    prompt: str
    completion: str
    num_tokens: int
    finish_reason: str
    reward: float | None
    """None where it could not be scored."""
    parts: Mapping[str, float]
    """Of the reward, by name and before their weights."""
    advantage: float | None
    """Mean over its tokens; None where it was not trained on."""
    error: str | None
    images: tuple[str, ...] = ()
    """Pictures of the prompt."""

    @property
    def group(self) -> str:
        """What the samples of a prompt in a round have in common."""
        return self.key.rpartition("#")[0]


def index_rounds(path: Path) -> dict[int, list[Span]]:
    """Where the lines of each round lie, in the order of the file; a last line cut short by a kill is left out.

    A missing file has no rounds.
    """
    found: dict[int, list[Span]] = {}
    if not path.exists():
        return found
    end = 0
    with reading(path), path.open("rb") as handle:
        for line in handle:
            start, end = end, end + len(line)
            if not line.endswith(b"\n") or not line.strip():
                continue
            spans = found.setdefault(_round(line), [])
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
    return found


def read_round(path: Path, spans: list[Span], *, prompts: int) -> list[list[CompletionRow]]:
    """The completions of the round's first prompts, a list for each; lines of the others are dropped as they come."""
    groups: dict[str, list[CompletionRow]] = {}
    with reading(path):
        for line in _lines(path, spans):
            row = typed(CompletionRow, json.loads(line), path)
            if row.group in groups or len(groups) < prompts:
                groups.setdefault(row.group, []).append(row)
    return list(groups.values())


def _lines(path: Path, spans: list[Span]) -> Iterator[bytes]:
    with path.open("rb") as handle:
        for start, end in spans:
            handle.seek(start)
            while handle.tell() < end:
                yield handle.readline()


def _round(line: bytes) -> int:
    begins = ROUND.match(line)
    number: int = int(begins[1]) if begins else json.loads(line)["round"]
    return number
