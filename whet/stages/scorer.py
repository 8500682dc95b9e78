"""A reward model that scores rows, on the device it was given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.data.pack import pack_groups
from whet.data.pictures import PictureReader
from whet.errors import ModelError
from whet.models.backbone import unwrapped
from whet.models.load import compute_dtype, pick_device
from whet.models.memory import token_budget
from whet.models.placed import Placed
from whet.models.reward import load_reward_model
from whet.models.scoring import RowScorer
from whet.schema.artifacts import ModelRef
from whet.stages.rendering import reader_of
from whet.stages.score_rows import ScoreRow, batches

DIGITS = 7
"""Significant digits of a score: those of fp32."""
Scores = list[tuple[float, ...] | None]
"""Of each row's answers; None for a row without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Which model, and how it computes."""

    ref: ModelRef
    model: Model
    precision: str
    batch_tokens: int | None
    """Tokens that go through the model at once; None fits them to the device."""


class Scorer:
    """The model in this process: loaded at the first use, and on the CPU once the device has no room for it."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        device = scoring.model.device
        self._placed = Placed(
            self._loaded, pick_device(device), fall_back=device == "auto", what="the reward model"
        )  # fmt: skip

    def budget(self) -> int:
        """Tokens of a batch. Raises ModelError where the model is no reward model."""
        return self._placed.use(self._budget)

    def score(self, rows: Sequence[ScoreRow]) -> Scores:
        """Raises ModelError for a score that is no number."""
        reader = reader_of(self._scoring.ref.path, self._scoring.model)
        return self._placed.use(
            lambda scorer: score_rows(scorer, rows, self._budget(scorer), self._placed.device, reader)
        )

    def _budget(self, scorer: RowScorer) -> int:
        dtype = compute_dtype(self._scoring.precision, self._placed.device)
        return self._scoring.batch_tokens or token_budget(unwrapped(scorer.model), self._placed.device, dtype).packed

    def _loaded(self, place: torch.device) -> RowScorer:
        there = self._scoring.model.model_copy(update={"device": place.type})
        dtype = compute_dtype(self._scoring.precision, place)
        return RowScorer(load_reward_model(self._scoring.ref, there, RewardHead(), dtype=dtype)).eval()


def score_rows(
    scorer: RowScorer,
    rows: Sequence[ScoreRow],
    budget: int,
    device: torch.device,
    reader: PictureReader | None = None,
) -> Scores:
    """Batches of about equal rows, at most `budget` tokens each. Raises ModelError for a score that is no number."""
    scores: Scores = [None] * len(rows)
    groups = {place: row.group for place, row in enumerate(rows) if row.group is not None}
    places = list(groups)
    for batch in batches([groups[place].num_tokens for place in places], budget):
        here = [places[number] for number in batch]
        packed = pack_groups([groups[place] for place in here], reader)
        with torch.inference_mode():
            said = iter(scorer(packed.to(device)).tolist())
        for place in here:
            scores[place] = tuple(_rounded(next(said), rows[place]) for _ in groups[place].response_ids)
    return scores


def _rounded(score: float, row: ScoreRow) -> float:
    if not math.isfinite(score):
        raise ModelError(
            f"gives {score} as a score", file=row.origin.file, line=row.origin.line, fix="use --precision fp32"
        )
    return float(f"{score:.{DIGITS}g}")
