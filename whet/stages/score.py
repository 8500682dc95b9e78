"""Scores of a reward model for the answers of a file, streamed: `whet score FILE --model RM`.

    {"file": "pairs.jsonl", "line": 1, "scores": [1.92, -0.41]}

One line a record, in the file's order, however long the file is; what was not scored says why.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from whet.config.data import Data
from whet.config.model import Model, Vision
from whet.data.ledger import Ledger
from whet.errors import DataError
from whet.models.four_bit import trained_on
from whet.models.load import pick_device
from whet.runs.files import WrittenText, json_line, writing
from whet.runs.sinks import Progress
from whet.schema.artifacts import ModelRef
from whet.stages.measure.interval import wilson
from whet.stages.rendering import renderer_of
from whet.stages.score_actors import ScoreActors
from whet.stages.score_rows import ScoreRow, read_rows, windows
from whet.stages.scorer import Scorer, Scores, Scoring

WINDOW_BATCHES = 32
"""Batches whose rows are sorted together by length."""


@dataclass(slots=True)
class Summary:
    """Running numbers over all rows."""

    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    """Why rows were not scored."""
    responses: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean (Welford 1962)."""
    low: float = math.inf
    high: float = -math.inf
    ordered_rows: int = 0
    pairs: int = 0
    right: float = 0.0
    """Pairs of one row that the scores order as the file does, a tie half."""

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.responses) if self.responses else math.nan

    def add(self, row: ScoreRow, scores: Sequence[float] | None) -> None:
        """Count a row; `scores` is None where it has none."""
        self.rows += 1
        if scores is None:
            self.problems[row.reason] += 1
            return
        self.tokens += row.num_tokens
        self.truncated += row.truncated
        for score in scores:
            self.responses += 1
            distance = score - self.mean
            self.mean += distance / self.responses
            self.squares += distance * (score - self.mean)
            self.low, self.high = min(self.low, score), max(self.high, score)
        self._compare(row.order, scores)

    def _compare(self, order: Sequence[float], scores: Sequence[float]) -> None:
        signs = [
            (scores[i] > scores[j]) - (scores[i] < scores[j])
            for i in range(len(order))
            for j in range(len(order))
            if order[i] > order[j]
        ]
        self.ordered_rows += bool(signs)
        self.pairs += len(signs)
        self.right += sum(0.5 + 0.5 * sign for sign in signs)

    def lines(self, seconds: float) -> Iterator[str]:
        """What is printed at the end."""
        pace = self.tokens / max(seconds, 1e-9)
        yield f"{self.rows:,} rows, {self.responses:,} responses scored, {pace:,.0f} tokens/s"
        if self.responses:
            yield f"scores: mean {self.mean:.4g}, std {self.std:.4g}, from {self.low:.4g} to {self.high:.4g}"
        if self.pairs:
            share = self.right / self.pairs
            low, high = wilson(share, self.ordered_rows)
            yield f"accuracy: {share:.3f} [{low:.3f}, {high:.3f}] of {self.pairs:,} pairs in the file's order"
        if self.truncated:
            yield f"cut at data.max_length: {self.truncated:,} rows"
        if self.problems:
            yield f"not scored: {self.problems.total():,} rows; {_most(self.problems)}"


def score_file(
    file: str, ref: ModelRef, data: Data, *, out: Path | None, device: str, precision: str,
    batch_tokens: int | None, with_content: bool, actors: int = 0, address: str | None = None,
    vision: Vision | None = None,
) -> Summary:  # fmt: skip
    """Score every answer of a file into `out`, else to standard output; progress and summary go to standard error.

    `out` appears when it is complete; until then its lines are in `OUT.part`. With `actors` so many models on the Ray
    cluster at `address` share the rows, each on a device of its own machine. Raises ModelError where the model is no
    reward model or this machine has no such device, DataError where `out` exists or a row cannot be used (see
    `read_rows`).
    """
    if not actors:
        pick_device(device, field="--device")
    if out is not None and out.exists():
        raise DataError("exists already, and is not overwritten", file=str(out), fix="choose another name or remove it")
    config = Model.model_validate(
        {
            "path": ref.path,
            "adapter": ref.adapter,
            "device": device,
            "quantization": trained_on(ref.adapter),
            "vision": vision or Vision(),
        }
    )
    scoring = Scoring(ref=ref, model=config, precision=precision, batch_tokens=batch_tokens)
    renderer = renderer_of(ref, config, system=data.system)
    with _scorers(scoring, actors, address) as scorers:
        budget = scorers.budget()  # what is wrong with the model is said before a row is read
        summary, notes, started = Summary(), Ledger(), time.monotonic()
        rows = read_rows(file, data, renderer, notes, with_content=with_content)
        with _lines_of(out) as handle, Progress("score", total=None) as progress:
            for window, scores in scorers.scored(windows(rows, WINDOW_BATCHES * budget)):
                for row, said in zip(window, scores, strict=True):
                    summary.add(row, said)
                handle.writelines(json_line(line_of(row, said)) for row, said in zip(window, scores, strict=True))
                handle.flush()
                progress.update(len(window), note=f"mean {summary.mean:.3g}")
    if notes.thinned:
        notes.note(f"fewer pictures than they have, by data.max_images: {len(notes.thinned):,} rows")
    for line in (*notes.notes, *summary.lines(time.monotonic() - started)):
        print(line, file=sys.stderr)
    return summary


class Here:
    """One model, in this process."""

    def __init__(self, scoring: Scoring) -> None:
        self._scorer = Scorer(scoring)

    def budget(self) -> int:
        return self._scorer.budget()

    def scored(self, rows: Iterable[list[ScoreRow]]) -> Iterator[tuple[list[ScoreRow], Scores]]:
        return ((window, self._scorer.score(window)) for window in rows)

    def close(self) -> None:
        """The model goes with the process."""


@contextmanager
def _scorers(scoring: Scoring, actors: int, address: str | None) -> Iterator[Here | ScoreActors]:
    made = ScoreActors(scoring, actors=actors, address=address) if actors else Here(scoring)
    with closing(made):
        yield made


def line_of(row: ScoreRow, scores: Sequence[float] | None) -> dict[str, Any]:
    """What is written of a row."""
    line: dict[str, Any] = {"file": row.origin.file, "line": row.origin.line, **row.content}
    line["scores"] = None if scores is None else list(scores)
    if row.truncated:
        line["truncated"] = True
    if row.problem is not None:
        line["problem"] = row.problem
    return line


@contextmanager
def _lines_of(out: Path | None) -> Iterator[IO[str]]:
    """Where lines are written: standard output, or a file that takes its name when all has gone well."""
    if out is None:
        try:
            yield sys.stdout
        except BrokenPipeError:  # who reads the lines has seen enough (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    part = out.with_name(f"{out.name}.part")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with WrittenText(part, "w", out) as handle:
        yield handle
    with writing(out):
        part.replace(out)


def _most(problems: Counter[str]) -> str:
    """The commonest reasons."""
    return "; ".join(f"{count:,} {reason}" for reason, count in problems.most_common(3))
