"""What a kind of training brings to the loop: how rows become a batch, and a batch a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from whet.config.objective import RewardWeighted
from whet.config.stage import (
    DpoStage,
    KtoStage,
    OfflinePolicyStage,
    OfflineStage,
    RewardStage,
    RewardWeightedStage,
    SftStage,
    SoftPreferenceStage,
)
from whet.data.batch import (
    GroupBatch,
    RankingBatch,
    RatingBatch,
    TokenBatch,
    collate_groups,
    collate_rankings,
    collate_ratings,
    collate_tokens,
)
from whet.errors import DataError
from whet.models.scoring import TokenScorer
from whet.stages.context import Context
from whet.stages.reference import References
from whet.stages.rows import Rows
from whet.train.bind import (
    pairwise_objective,
    ranking_objective,
    supervised_formula,
    unpaired_objective,
    weighted_objective,
)
from whet.train.learners import (
    Learner,
    PairLearner,
    RankingLearner,
    RatingLearner,
    ScoredLearner,
    TokenLearner,
)
from whet.train.parallel import Parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    learner: Learner[Any]
    collate: Callable[[Sequence[int]], Any]
    """From places in the data set to a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What every kind of work stands on."""

    context: Context
    rows: Rows
    scorer: torch.nn.Module
    parallel: Parallel


def work_of(stage: OfflineStage, ground: Ground) -> Work:
    """Batches and formula of the stage's kind, with its reference where it needs one."""
    device, rows, reader = ground.parallel.device, ground.rows.rows, ground.rows.reader
    match stage:
        case SftStage():

            def tokens(indices: Sequence[int]) -> TokenBatch:
                return collate_tokens([rows[i] for i in indices], device=device, reader=reader)

            return Work(learner=TokenLearner(supervised_formula(stage.objective)), collate=tokens)
        case RewardStage():

            def rankings(indices: Sequence[int]) -> RankingBatch:
                return collate_rankings([rows[i] for i in indices], device=device, reader=reader)

            return Work(learner=RankingLearner(ranking_objective(stage.objective)), collate=rankings)
        case DpoStage():
            return _pairs(stage, ground)
        case KtoStage():
            return _ratings(stage, ground)
        case RewardWeightedStage() | SoftPreferenceStage():
            return _scored(stage, ground)


def _groups(ground: Ground) -> Callable[[Sequence[int]], GroupBatch]:
    def groups(indices: Sequence[int]) -> GroupBatch:
        mine = [ground.rows.rows[i] for i in indices]
        return collate_groups(mine, indices, device=ground.parallel.device, reader=ground.rows.reader)

    return groups


def _pairs(stage: DpoStage, ground: Ground) -> Work:
    objective, collate = pairwise_objective(stage.objective), _groups(ground)
    reference = _references(stage, ground, columns=2).of() if objective.needs_reference else None
    return Work(learner=PairLearner(objective, reference), collate=collate)


def _scored(stage: RewardWeightedStage | SoftPreferenceStage, ground: Ground) -> Work:
    objective, collate = weighted_objective(stage.objective, _kind_of_values(ground.rows)), _groups(ground)
    widest = int(ground.rows.table.num_responses.max())
    reference = _references(stage, ground, columns=widest).of() if objective.needs_reference else None
    moments = (0.0, 1.0)
    if isinstance(stage.objective, RewardWeighted) and objective.needs_moments:
        values = ground.rows.table.values(ground.rows.num_train)
        moments = float(values.mean()), float(values.std())
    return Work(learner=ScoredLearner(objective, reference, moments), collate=collate)


def _kind_of_values(rows: Rows) -> Literal["reward", "weight"]:
    """What the numbers of the rows are. Raises DataError where some files have rewards and others weights."""
    formats = rows.formats
    if "weighted" in formats and len(formats) > 1:
        raise DataError(
            "mixes rewards and weights", field="data.files", found=", ".join(sorted(formats)),
            fix="train on files of one kind",
        )  # fmt: skip
    return "weight" if "weighted" in formats else "reward"


def _ratings(stage: KtoStage, ground: Ground) -> Work:
    """Each row is scored with the response of its successor in a fixed order too, among rows of the same half."""
    rows, objective = ground.rows, unpaired_objective(stage.objective)
    successor = np.concatenate([
        _successors(rows.num_train, stage.train.seed),
        rows.num_train + _successors(rows.num_held_out, stage.train.seed),
    ])  # fmt: skip
    if rows.num_train < 2 and objective.needs_kl:
        raise DataError("one row cannot be compared with another", field="data.files", fix="give at least two rows")

    def ratings(indices: Sequence[int]) -> RatingBatch:
        mine, others = [rows.rows[i] for i in indices], [rows.rows[int(successor[i])] for i in indices]
        return collate_ratings(
            mine, others, indices, max_length=stage.data.max_length, device=ground.parallel.device, reader=rows.reader
        )

    references = _references(stage, ground, columns=2)
    return Work(
        learner=RatingLearner(objective, references.of(0), references.of(1)),
        collate=ratings,
    )


def _successors(num: int, seed: int) -> np.ndarray:
    """[num] the next row after each in a random cycle through all of them."""
    order = np.random.Generator(np.random.PCG64([seed, num])).permutation(num)
    successor = np.empty(num, dtype=np.int64)
    successor[order] = np.roll(order, -1)
    return successor


def _references(stage: OfflinePolicyStage, ground: Ground, *, columns: int) -> References:
    assert isinstance(ground.scorer, TokenScorer), "only language models have a reference"
    return References(stage, ground.context, ground.rows, ground.scorer, ground.parallel, columns=columns)
